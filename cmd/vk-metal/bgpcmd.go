package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/hostgw/bgp"
)

// serveBGP answers vk-metal bgp on a socket that only root can reach.
func serveBGP(ctx context.Context, path string, s *bgp.Speaker, log *slog.Logger) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove socket of before: %w", err)
	}
	listener, err := net.Listen("unix", path) // its directory is 0700
	if err != nil {
		return fmt.Errorf("listen for vk-metal bgp: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		status, err := s.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	})
	for path, yes := range map[string]bool{"POST /withdraw": true, "POST /announce": false} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := s.Withdraw(yes); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer vk-metal bgp: %w", err)
	}
	return nil
}

func newBGP(g *globals) *cobra.Command {
	var asJSON bool
	group := &cobra.Command{
		Use:   "bgp",
		Short: "Show this node's BGP: peers, and routes told and received",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := askBGP(cmd.Context(), g, http.MethodGet, "/status")
			if err != nil || asJSON {
				_, _ = cmd.OutOrStdout().Write(body)
				return err
			}
			var s bgp.Status
			if err := json.Unmarshal(body, &s); err != nil {
				return fmt.Errorf("read the agent's answer: %w", err)
			}
			return printBGP(cmd.OutOrStdout(), &s, time.Now())
		},
	}
	group.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	for _, c := range []struct{ name, short string }{
		{"withdraw", "Take back all routes that this node tells, until `announce` or a reboot; sessions stay"},
		{"announce", "Tell them again"},
	} {
		group.AddCommand(&cobra.Command{
			Use: c.name, Short: c.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := askBGP(cmd.Context(), g, http.MethodPost, "/"+c.name)
				return err
			},
		})
	}
	return group
}

// askBGP speaks to the running agent.
func askBGP(ctx context.Context, g *globals, method, path string) ([]byte, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", g.layout.BGPSocket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://bgp"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent about BGP (does it run, with network.bgpConfig or network.bgpConfigMap set?): %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the agent says: %s", bytes.TrimSpace(body))
	}
	return body, err
}

// printBGP shows a status to people.
func printBGP(out io.Writer, s *bgp.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "AS %d, router ID %s", s.ASN, s.RouterID)
	if s.Withdrawn {
		fmt.Fprint(w, ", WITHDRAWN by vk-metal bgp withdraw")
	}
	if s.Restarting {
		fmt.Fprint(w, ", restarting: routes of before are kept")
	}
	fmt.Fprint(w, "\n\nPEER\tADDRESS\tAS\tSTATE\tSINCE\tRECEIVED\tTOLD\tLAST DOWN\n")
	for _, p := range s.Peers {
		since := "-"
		if !p.Since.IsZero() {
			since = now.Sub(p.Since).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%d\t%s\n", p.Name, p.Address, p.ASN, p.State, since, p.Accepted, p.Advertised, p.Reason)
	}
	fmt.Fprint(w, "\nTOLD\tFOR\n")
	for _, r := range s.Told {
		fmt.Fprintf(w, "%s\t%s\n", r.Prefix, strings.Join(r.Why, ", "))
	}
	fmt.Fprint(w, "\nRECEIVED\tFROM\tAS PATH\tIN THE KERNEL\n")
	for _, r := range s.Received {
		installed := "no: " + r.Refused
		if len(r.Hops) > 0 {
			var hops []string
			for _, h := range r.Hops {
				hops = append(hops, h.Gateway.String())
			}
			installed = "via " + strings.Join(hops, ", ")
		}
		for i, p := range r.Paths {
			prefix := r.Prefix.String()
			if i > 0 {
				prefix, installed = "", ""
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", prefix, p.From, p.ASPath, installed)
		}
	}
	for _, problem := range s.Problems {
		fmt.Fprintf(w, "\nproblem: %s", problem)
	}
	if s.Error != "" {
		fmt.Fprintf(w, "\nerror: %s\n", s.Error)
	}
	return w.Flush()
}
