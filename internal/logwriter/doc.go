// Package logwriter is the one log writer of a node: it empties the containers'
// stdout and stderr FIFOs into CRI log files and copies lines to the journal. It must
// not know the agent, units or Kubernetes' types: standard library and x/sys only, so
// that the process stays small.
//
// It may be killed at any instant without losing or doubling a byte. For every FIFO:
//
//  1. splice(2) moves bytes from the FIFO to the end of a spool file on the same tmpfs.
//     Within the one system call the kernel takes from the pipe exactly what it has
//     added to the file, so the spool's size is the record of what was taken.
//  2. The records to append are a pure function of spool bytes and a time stamp. Both,
//     and the log file's size, are noted in the stream's state file (one small pwrite).
//  3. The records are appended to the log file. After a kill they are made again from
//     the note, and what the file lacks of them is appended.
//  4. The state file notes that the bytes are done; an empty spool is truncated.
//
// The pipes themselves survive the writer because each FIFO's descriptor lies in
// systemd's file-descriptor store as well (and the launcher opens the FIFOs O_RDWR).
// Power loss is not covered: there is no fsync, as with any container runtime.
package logwriter
