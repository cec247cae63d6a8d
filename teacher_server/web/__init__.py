"""The server's HTTP port: metrics, the status page and its figures, probes; reads the teacher and changes nothing."""
