// Package imports holds no code: its test says who may import whom, and why.
package imports
