// Package images pulls OCI and Docker images by digest, verifies and unpacks each
// layer once, and answers for host images. It knows registries and the content store;
// it must not know systemd, networks or what a pod is for.
//
// The store is a directory tree and nothing else:
//
//	index/<hex>.json   one Record per image, named by its config digest, written atomically
//	layers/<key>       one unpacked layer in overlayfs lower form, named by its chain ID
//	ingest/<digest>    compressed blobs while they are downloaded (resumed after a crash)
//	tmp/<random>       layers being unpacked; renamed to layers/ when complete and synced
//	lock, index.lock   advisory locks shared by the agent and the command line
//
// Whatever is in layers/ is complete: it was verified by digest and synced before its rename.
package images
