"""TOML into the settings of the layers below; nothing below imports it."""
