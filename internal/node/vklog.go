package node

import (
	"fmt"
	"log/slog"

	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
)

// VKLogger passes virtual-kubelet's log lines to slog, whose messages are therefore not
// constant. Its debug lines hold whole patches and are dropped.
type VKLogger struct{ Log *slog.Logger }

var _ vklog.Logger = VKLogger{}

// Debug drops.
func (VKLogger) Debug(...any) {}

// Debugf drops.
func (VKLogger) Debugf(string, ...any) {}

// Info logs at debug level: what virtual-kubelet tells of its workings.
func (l VKLogger) Info(args ...any) { l.Log.Debug(fmt.Sprint(args...)) }

// Infof is Info with a format.
func (l VKLogger) Infof(format string, args ...any) { l.Log.Debug(fmt.Sprintf(format, args...)) }

// Warn logs a warning.
func (l VKLogger) Warn(args ...any) { l.Log.Warn(fmt.Sprint(args...)) }

// Warnf is Warn with a format.
func (l VKLogger) Warnf(format string, args ...any) { l.Log.Warn(fmt.Sprintf(format, args...)) }

// Error logs an error.
func (l VKLogger) Error(args ...any) { l.Log.Error(fmt.Sprint(args...)) }

// Errorf is Error with a format.
func (l VKLogger) Errorf(format string, args ...any) { l.Log.Error(fmt.Sprintf(format, args...)) }

// Fatal logs an error; a library does not end this process.
func (l VKLogger) Fatal(args ...any) { l.Error(args...) }

// Fatalf is Fatal with a format.
func (l VKLogger) Fatalf(format string, args ...any) { l.Errorf(format, args...) }

// WithField implements log.Logger; the patch itself is left out.
func (l VKLogger) WithField(key string, value any) vklog.Logger {
	if key == "patch" {
		return l
	}
	return VKLogger{l.Log.With(key, value)}
}

// WithFields implements log.Logger.
func (l VKLogger) WithFields(fields vklog.Fields) vklog.Logger {
	var next vklog.Logger = l
	for key, value := range fields {
		next = next.WithField(key, value)
	}
	return next
}

// WithError implements log.Logger.
func (l VKLogger) WithError(err error) vklog.Logger { return VKLogger{l.Log.With("err", err)} }
