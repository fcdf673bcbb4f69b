package probes

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// probeGRPC asks the service for its health (grpc.health.v1) without TLS.
func probeGRPC(ctx context.Context, spec *corev1.Probe, address string) outcome {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithUserAgent(userAgent), grpc.WithNoProxy(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return outcome{result: failure, output: fmt.Sprintf("error: failed to connect service at %q: %v", address, err)}
	}
	defer conn.Close()
	if !connect(ctx, conn) {
		return outcome{result: failure, output: fmt.Sprintf("timeout: failed to connect service %q within %v: %v",
			address, timeout(spec), context.DeadlineExceeded)}
	}
	service := ""
	if spec.GRPC.Service != nil {
		service = *spec.GRPC.Service
	}
	res, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return outcome{result: failure, output: "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " +
			status.Convert(err).Message()}
	case status.Code(err) == codes.DeadlineExceeded:
		return outcome{result: failure, output: fmt.Sprintf("timeout: health rpc did not complete within %v", timeout(spec))}
	case err != nil:
		return outcome{result: failure, output: fmt.Sprintf("error: health rpc probe failed: %v", err)}
	case res.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return outcome{result: failure, output: fmt.Sprintf("service unhealthy (responded with %q)", res.GetStatus())}
	}
	return outcome{result: success, output: "service healthy"}
}

// connect waits until the connection is up; false means that ctx ended first.
func connect(ctx context.Context, conn *grpc.ClientConn) bool {
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		if state == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}
