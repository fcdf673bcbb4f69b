// Package bootstrap gives a server its identity in a cluster: kubeadm-style discovery with
// a bootstrap token and a CA pin, the client and serving certificates from the CSR API with
// their rotation, and the refusal to run beside a kubelet. It must not know pods or the Node.
package bootstrap
