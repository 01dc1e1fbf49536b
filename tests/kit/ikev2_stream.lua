-- IKE and ESP in a byte stream, as RFC 9329 puts them into TCP, also inside TLS.
--
-- A stream begins, from its TCP originator only, with the six octets "IKETCP" (section 4). Then
-- frames follow back to back in both directions (section 3): a length of 16 bits, big-endian, that
-- counts itself; then either an IKE message behind a non-ESP marker of four zero octets, or an ESP
-- packet, whose SPI is never zero. A single octet 0xFF is a NAT keepalive.
--
-- Bare TCP is looked for on port 4500, TLS on 443. For other ports: tshark -d tcp.port==N,ikev2_stream

local stream = Proto("ikev2_stream", "IKE and ESP in a stream (RFC 9329)")

local f = stream.fields
f.prefix = ProtoField.string("ikev2_stream.prefix", "Stream prefix")
f.length = ProtoField.uint16("ikev2_stream.length", "Length", base.DEC)
f.kind = ProtoField.string("ikev2_stream.kind", "Kind")
f.spi = ProtoField.uint32("ikev2_stream.esp_spi", "ESP SPI", base.HEX)
f.sequence = ProtoField.uint32("ikev2_stream.esp_sequence", "ESP sequence number", base.DEC)

local malformed = ProtoExpert.new(
  "ikev2_stream.malformed", "Length below 2", expert.group.MALFORMED, expert.severity.ERROR)
stream.experts = { malformed }

local PREFIX = "IKETCP"
local LENGTH_OCTETS = 2
local MARKER_OCTETS = 4
local ESP_HEADER_OCTETS = 8

local isakmp, esp = Dissector.get("isakmp"), Dissector.get("esp")

-- One frame at ``offset``: its tree, and what is in it to Wireshark's own dissectors.
local function show_frame(tvb, pinfo, tree, offset, length)
  local branch = tree:add(stream, tvb(offset, length), "Frame")
  branch:add(f.length, tvb(offset, LENGTH_OCTETS))
  local start, size = offset + LENGTH_OCTETS, length - LENGTH_OCTETS
  if size == 1 and tvb(start, 1):uint() == 0xff then
    branch:add(f.kind, tvb(start, 1), "keepalive")
  elseif size >= MARKER_OCTETS and tvb(start, MARKER_OCTETS):uint() == 0 then
    branch:add(f.kind, tvb(start, MARKER_OCTETS), "ike")
    isakmp:call(tvb(start + MARKER_OCTETS, size - MARKER_OCTETS):tvb(), pinfo, branch)
  elseif size >= ESP_HEADER_OCTETS then
    branch:add(f.kind, tvb(start, size), "esp")
    branch:add(f.spi, tvb(start, 4))
    branch:add(f.sequence, tvb(start + 4, 4))
    esp:call(tvb(start, size):tvb(), pinfo, branch)
  else
    branch:add(f.kind, tvb(offset, length), "other")
  end
end

-- More octets are needed from ``offset`` on: TCP or TLS will call again with them.
local function ask_for_more(pinfo, offset, count)
  pinfo.desegment_offset = offset
  pinfo.desegment_len = count or DESEGMENT_ONE_MORE_SEGMENT
end

function stream.dissector(tvb, pinfo, tree)
  local total, offset = tvb:len(), 0
  local branch = tree:add(stream, tvb())
  pinfo.cols.protocol = "IKETCP"
  local head = math.min(total, #PREFIX)
  if tvb(0, head):string() == PREFIX:sub(1, head) then
    if head < #PREFIX then
      ask_for_more(pinfo, 0, #PREFIX - head)
      return total
    end
    branch:add(f.prefix, tvb(0, #PREFIX))
    offset = #PREFIX
  end
  while offset < total do
    if total - offset < LENGTH_OCTETS then
      ask_for_more(pinfo, offset)
      return total
    end
    local length = tvb(offset, LENGTH_OCTETS):uint()
    if length < LENGTH_OCTETS then
      branch:add_proto_expert_info(malformed)
      return total
    end
    if total - offset < length then
      ask_for_more(pinfo, offset, length - (total - offset))
      return total
    end
    show_frame(tvb, pinfo, branch, offset, length)
    offset = offset + length
  end
  return total
end

DissectorTable.get("tcp.port"):add(4500, stream)
DissectorTable.get("tls.port"):add(443, stream)
-- The stream says "http/1.1" in its ALPN, as a browser does, and Wireshark believes ALPN first.
DissectorTable.get("tls.alpn"):add("http/1.1", stream)
