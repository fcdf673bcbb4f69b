// Package hostlogs serves the server's own logs over HTTP as a kubelet does at /logs/: the files of
// one directory and, where that is allowed, what programs wrote to the journal (KEP-2258, node log
// query). It knows files and journalctl; it must not know pods, nor who may ask.
package hostlogs
