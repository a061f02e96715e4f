"""The definitions, in short plain torch: what every op is compared with. Public, slow, without cleverness."""
