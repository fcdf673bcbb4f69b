// Package packages tests what a user installs: the deb in a machine with systemd, the
// rpm in an rpm root of its own, and the log writer as its unit runs it.
package packages
