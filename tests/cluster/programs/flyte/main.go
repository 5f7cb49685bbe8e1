// Flyte's own reading of configuration files, and its client of the object store, without the rest of Flyte: of flyteadmin the
// module proxy has no archive.
//
//	flyte-check validate --strict --file FILE   says what in a file Flyte does not know (flytestdlib's own command)
//	flyte-check store FILE                      writes, finds, reads and removes an object, and prints an address for an upload
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	// They register the sections of the configuration.
	_ "github.com/flyteorg/flyte/flyteplugins/go/tasks/logs"
	_ "github.com/flyteorg/flyte/flyteplugins/go/tasks/pluginmachinery/flytek8s/config"
	_ "github.com/flyteorg/flyte/flyteplugins/go/tasks/plugins/k8s/ray"
	_ "github.com/flyteorg/flyte/flytepropeller/pkg/controller/config"
	_ "github.com/flyteorg/flyte/flytepropeller/pkg/controller/nodes/task/config"
	_ "github.com/flyteorg/flyte/flytestdlib/database"

	"github.com/flyteorg/flyte/flytestdlib/config"
	"github.com/flyteorg/flyte/flytestdlib/config/viper"
	"github.com/flyteorg/flyte/flytestdlib/contextutils"
	"github.com/flyteorg/flyte/flytestdlib/promutils"
	"github.com/flyteorg/flyte/flytestdlib/promutils/labeled"
	"github.com/flyteorg/flyte/flytestdlib/storage"
	"github.com/flyteorg/stow"
)

func store(ctx context.Context, file string) error {
	if err := viper.NewAccessor(config.Options{SearchPaths: []string{file}}).UpdateConfig(ctx); err != nil {
		return err
	}
	labeled.SetMetricKeys(contextutils.ProjectKey)
	data, err := storage.NewDataStore(storage.GetConfig(), promutils.NewScope("check"))
	if err != nil {
		return err
	}
	place, err := data.ConstructReference(ctx, data.GetBaseContainerFQN(ctx), "check", "one")
	if err != nil {
		return err
	}
	content := []byte("content")
	if err := data.WriteRaw(ctx, place, int64(len(content)), storage.Options{}, bytes.NewReader(content)); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	head, err := data.Head(ctx, place)
	if err != nil || !head.Exists() || head.Size() != int64(len(content)) {
		return fmt.Errorf("head: %v %w", head, err)
	}
	reader, err := data.ReadRaw(ctx, place)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer reader.Close()
	if read, err := io.ReadAll(reader); err != nil || !bytes.Equal(read, content) {
		return fmt.Errorf("read %q: %w", read, err)
	}
	if err := data.Delete(ctx, place); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	properties := storage.SignedURLProperties{Scope: stow.ClientMethodPut, ExpiresIn: time.Minute}
	signed, err := data.CreateSignedURL(ctx, place, properties)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	fmt.Println(signed.URL.String())
	return nil
}

func main() {
	var err error
	if len(os.Args) == 3 && os.Args[1] == "store" {
		err = store(context.Background(), os.Args[2])
	} else {
		command := config.NewConfigCommand(viper.NewAccessor)
		command.SetArgs(os.Args[1:])
		err = command.Execute()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
