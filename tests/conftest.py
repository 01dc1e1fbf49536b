"""What holds for all tests."""

from hypothesis import settings

# How long an example may take is the machine's affair, which runs other tests beside it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
