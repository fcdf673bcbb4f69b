// Package staticpods reads pods from the manifests of a directory, as a kubelet's
// staticPodPath. It owns reading, checking and naming them, and must not know how pods are
// run or shown in the API.
package staticpods
