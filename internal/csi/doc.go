// Package csi is the node side of the Container Storage Interface: it knows the drivers of
// this node, tells the cluster of them (CSINode, the Node's annotation and labels) and has
// them stage and publish the volumes of pods, at the kubelet's paths:
//
//	<kubelet>/plugins/kubernetes.io/csi/<driver>/<sha256 of handle>/globalmount   staged
//	<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount                  published
//	<kubelet>/plugins/kubernetes.io/csi/volumeDevices/{staging/<name>,publish/<name>/<uid>}
//
// What this boot has published is in <run>/csi/<uid>/<name>.json: a new agent takes it up. It
// must not know units, images or networks.
package csi
