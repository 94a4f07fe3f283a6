"""Drawing in one style; what is drawn was computed by the charts."""
