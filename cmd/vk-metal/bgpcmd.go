package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/hostgw/bgp"
)

// serveBGP answers vk-metal bgp.
func serveBGP(ctx context.Context, path string, s *bgp.Speaker, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		status, err := s.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, status)
	})
	for path, yes := range map[string]bool{"POST /withdraw": true, "POST /announce": false} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := s.Withdraw(yes); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	return serveSocket(ctx, path, mux, log)
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

func askBGP(ctx context.Context, g *globals, method, path string) ([]byte, error) {
	return askSocket(ctx, g.layout.BGPSocket(), method, path, "BGP (does it run, with network.bgpConfig or network.bgpConfigMap set?)")
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
