// kstatus reads objects, as a JSON array on its standard input, and prints what the library of that name says of
// each: a JSON array of {"status", "message"}, in the same order.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func judge() error {
	var objects []map[string]any
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return err
	}
	verdicts := make([]verdict, 0, len(objects))
	for _, object := range objects {
		// Numbers as an API client has them: integers where they are whole.
		raw, err := json.Marshal(object)
		if err != nil {
			return err
		}
		found := &unstructured.Unstructured{}
		if err := found.UnmarshalJSON(raw); err != nil {
			return err
		}
		result, err := status.Compute(found)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, verdict{Status: string(result.Status), Message: result.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

func main() {
	if err := judge(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}
