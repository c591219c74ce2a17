"""Configuration: frozen models, one file per section, validated once at the top (see `loading`)."""
