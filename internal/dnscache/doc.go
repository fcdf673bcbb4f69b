// Package dnscache answers pods' queries to the cluster's DNS on the node, from memory.
// The kernel hands a query to the cache only while the cache's socket is open (nftables'
// tproxy); at any other time it goes its usual way. So nothing in a pod knows of the cache,
// and nothing breaks when the agent is stopped or killed.
package dnscache
