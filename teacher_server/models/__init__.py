"""The frozen model: loaded, cut into spans, laid out over devices and processes."""
