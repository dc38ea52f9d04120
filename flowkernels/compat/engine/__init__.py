"""What serves every library: patching modules, tables of classes, the report, thresholds."""
