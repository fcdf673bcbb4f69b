// Package volumes makes a pod's volumes ready on the host: emptyDir, hostPath,
// configMap, secret, downwardAPI, projected. It knows directories and the objects
// they are made from; it must not know units, images or networks.
//
// Layout, per pod UID:
//
//	<lib>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>   emptyDir on disk
//	<lib>/pods/<uid>/volumes/kubernetes.io~configmap/<volume>
//	<run>/volumes/<uid>/kubernetes.io~empty-dir/<volume>        emptyDir in memory: a tmpfs each
//	<run>/volumes/<uid>/kubernetes.io~{secret,projected,downward-api}/<volume>
//	<run>/volumes/<uid>/vk-metal~pod-certificates/<volume>.<source>  keys and certificates, for the next agent
//
// <run>/volumes is one tmpfs for the whole node; it is mounted if /run should not be a tmpfs.
package volumes
