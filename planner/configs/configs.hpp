#pragma once

// Configuration files in and out: what `shardplan import`, `export` and `convert` do.

#include "planner/configs/accelerate_yaml.hpp"

namespace shardwright {

struct ImportContext {
    std::optional<std::int64_t> world; // GPUs of the run, to divide train_batch_size where the file does not say them
    std::optional<std::int64_t> hiddenSize; // of the model, for sizes that are "auto"
    ConfigFileReader readFile;              // absent: from disk, beside the importing file, else in the working folder
};

/// Reads a DeepSpeed JSON or an Accelerate YAML (told apart by their text). Everything wrong comes as one InputError.
ImportedConfig importConfig(const std::string& text, const std::string& file, const ImportContext& context = {});

/// The scenario of somebody's configuration on this model and cluster. The cluster's node count is set so that the
/// file's processes fit where the file says them; settings that it does not say are those of `base`.
Scenario scenarioOf(const ImportedConfig& config, const Model& model, const Cluster& cluster,
                    const Training& base = {});

struct ConfigFile {
    std::string name; // "ds_config.json", "accelerate_config.yaml"
    std::string text;
};

struct ConfigExport {
    ConfigFormat format = ConfigFormat::DeepSpeed;
    std::vector<ConfigFile> files;
    std::string launchCommand;
    std::vector<ConfigNote> notes; // what the files cannot say, among others
};

struct ExportOptions {
    std::string folder; // that the files will be written to, as the launch command names it; empty: the working folder
    std::string script = "train.py";
};

/// The format that `word` of the command line means for a strategy: a name of ConfigFormat, or "accelerate-fsdp" and
/// "accelerate", which follow the strategy. InputError naming the words there are.
ConfigFormat configFormat(const std::string& word, const StrategyOptions& options);

/// The words that configFormat takes.
std::vector<std::string> configFormatWords();

/// The files that launch the strategy of the scenario. InputError when the format cannot say the strategy at all, or
/// when the framework would refuse it.
ConfigExport exportConfig(const Scenario& scenario, const Strategy& strategy, ConfigFormat format,
                          const ExportOptions& options = {});

/// The same for what was imported or converted.
ConfigExport writeConfig(const RunConfig& run, ConfigFormat format, const ExportOptions& options = {});

struct ConversionItem {
    std::string setting; // as the source spells it
    std::string text;    // what became of it
};

struct Conversion {
    ConfigExport result;
    std::vector<ConversionItem> kept;         // the same in both
    std::vector<ConversionItem> translated;   // said in other words, with what is not equal about them
    std::vector<ConversionItem> noEquivalent; // lost
};

/// Rewrites a configuration for another framework or launcher. `model` names the blocks to wrap; without it the
/// report says what then stays open.
Conversion convertConfig(const ImportedConfig& config, ConfigFormat target, const std::optional<Model>& model = {},
                         const ExportOptions& options = {});

} // namespace shardwright
