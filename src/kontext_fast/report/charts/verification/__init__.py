"""Charts of a verification. A module defines `draw(report: VerificationReport) -> Chart`, `FILE` and `SECTION`."""
