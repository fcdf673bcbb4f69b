// Package plugins finds the node's plugins as a kubelet does: it watches the registration
// directory for sockets (pluginregistration v1), asks each who it is, hands it to the handler
// of its type and tells it the outcome. It must not know what plugins are for.
package plugins
