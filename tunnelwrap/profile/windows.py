"""Windows: its own client, which can neither change ports nor prove itself by a pre-shared key."""

from tunnelwrap.profile import Fallback


def powershell(fallback: Fallback) -> str:
    """A script that leads the client to the wrapper, to be run by an administrator.

    The client compares the name that it connects to with the gateway's certificate. So that name
    itself must lead to the wrapper, which is on another host.
    """
    name, gateway, wrapper = fallback.name, fallback.remote_id, fallback.wrap.listen
    networks = [network for network in fallback.remote_ts if not network.endswith("/0")]
    routes = "".join(
        f"    Add-VpnConnectionRoute -ConnectionName '{name}' -DestinationPrefix '{network}'\n"
        for network in networks
    )
    return f"""\
{fallback.reasons("#")}#
# tunnelwrap runs on another host, at {wrapper}. From now on {gateway}
# leads there: the client compares that name with the certificate, so that both ways are one to it.
# tunnelwrap tries UDP first. To take it back, remove that line from the hosts file.

#Requires -RunAsAdministrator
$ErrorActionPreference = 'Stop'

$hosts = "$env:SystemRoot\\System32\\drivers\\etc\\hosts"
if (-not (Select-String -Path $hosts -SimpleMatch '{wrapper} {gateway}' -Quiet)) {{
    Add-Content -Path $hosts -Value '{wrapper} {gateway}'
}}

# A connection that there is goes on as it is. A new one has the certificate in the machine's store.
$connections = @(Get-VpnConnection) + @(Get-VpnConnection -AllUserConnection)
if (-not ($connections | Where-Object ServerAddress -eq '{gateway}')) {{
    Add-VpnConnection -Name '{name}' -ServerAddress '{gateway}' -TunnelType Ikev2 `
        -AuthenticationMethod MachineCertificate -EncryptionLevel Maximum `
        -SplitTunneling:{"$true" if networks else "$false"}
    # What Windows offers by itself is weak.
    Set-VpnConnectionIPsecConfiguration -ConnectionName '{name}' -Force `
        -AuthenticationTransformConstants GCMAES256 -CipherTransformConstants GCMAES256 `
        -EncryptionMethod AES256 -IntegrityCheckMethod SHA384 -DHGroup ECP384 -PfsGroup ECP384
{routes}}}
"""
