"""One file per room; every case registered here joins the shared contract by itself."""
