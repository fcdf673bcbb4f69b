// Package loadbalancer gives addresses of pools to LoadBalancer Services and writes them
// into their status. Allocate decides without effects; the Controller follows the API.
// What is allocated is what the Services' status says: there is no other record.
package loadbalancer
