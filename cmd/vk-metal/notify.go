package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/task"
)

// notify tells systemd how the service is; outside of a service it does nothing.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "err", err)
	}
}

// watchdog pings systemd for as long as every part says that it lives; when one does not,
// systemd restarts the agent, and no pod notices.
func watchdog(log *slog.Logger, alive func() error) task.Task {
	return task.New("watchdog", func(ctx context.Context, ready func()) error {
		ready()
		interval, err := daemon.SdWatchdogEnabled(false)
		if err != nil || interval == 0 {
			<-ctx.Done()
			return nil
		}
		tick := time.NewTicker(interval / 3)
		defer tick.Stop()
		for {
			if err := alive(); err != nil {
				log.Error("not alive, withholding the watchdog's ping", "err", err)
			} else {
				notify(log, daemon.SdNotifyWatchdog)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

// reload follows SIGHUP: the log level changes at once; other settings need a restart,
// which no pod notices either.
func reload(log *slog.Logger, path string, level *slog.LevelVar) task.Task {
	return task.New("reload", func(ctx context.Context, ready func()) error {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		ready()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			notify(log, daemon.SdNotifyReloading+"\n"+monotonic())
			if cfg, err := config.Load(path); err != nil {
				log.Error("configuration not reloaded", "err", err)
			} else {
				level.Set(cfg.LogLevel)
				log.Info("configuration reloaded", "logLevel", cfg.LogLevel)
			}
			notify(log, daemon.SdNotifyReady)
		}
	})
}

// monotonic is the MONOTONIC_USEC= that goes with RELOADING=1 (Type=notify-reload, systemd 253).
func monotonic() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return "MONOTONIC_USEC=0"
	}
	return "MONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10)
}
