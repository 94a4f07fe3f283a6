"""Studies of fitted solvers on `tiny`."""
