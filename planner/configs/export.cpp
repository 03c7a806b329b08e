#include <algorithm>

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/configs.hpp"
#include "planner/configs/yaml.hpp"
#include "planner/frameworks/rules.hpp"

namespace shardwright {

namespace {

constexpr const char* kDeepSpeedFile = "ds_config.json";
constexpr const char* kAccelerateFile = "accelerate_config.yaml";

std::string inFolder(const std::string& folder, const std::string& name)
{
    if (folder.empty() || folder == ".")
        return name;
    return folder.back() == '/' ? folder + name : fmt::format("{}/{}", folder, name);
}

/// `word` as a POSIX shell takes it for one word.
std::string shellWord(const std::string& word)
{
    constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=@%+,";
    if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos)
        return word;
    std::string quoted = "'";
    for (const char c : word)
        quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quoted + "'";
}

std::string accelerateCommand(const RunConfig& run, ConfigFormat format, const ExportOptions& options)
{
    std::string command =
        fmt::format("accelerate launch --config_file {}", shellWord(inFolder(options.folder, kAccelerateFile)));
    if (run.launch.processes == 0)
        command += " --num_processes $NUM_PROCESSES";
    if (!run.training.mixedPrecision && format != ConfigFormat::AccelerateDeepSpeed) // there the DeepSpeed file says it
        command += " --mixed_precision $MIXED_PRECISION";
    if (run.launch.nodes > 1) // on every node, with its own rank
        command += " --machine_rank $NODE_RANK --main_process_ip $MASTER_ADDR --main_process_port 29500";
    return command + " " + shellWord(options.script);
}

std::string deepSpeedCommand(const RunConfig& run, const ExportOptions& options)
{
    std::string command = "deepspeed";
    if (run.launch.nodes > 1)
        command += fmt::format(" --hostfile hostfile --num_nodes {}", run.launch.nodes);
    if (run.launch.processes > 0)
        command += fmt::format(" --num_gpus {}", run.launch.processes / run.launch.nodes);
    return command + fmt::format(" {} --deepspeed {}", shellWord(options.script),
                                 shellWord(inFolder(options.folder, kDeepSpeedFile)));
}

/// What TrainingArguments must say too: Hugging Face compares them with the file and stops on a difference.
void tellTrainingArguments(const RunConfig& run, const Json& deepSpeed, std::vector<ConfigNote>& notes)
{
    const TrainingSettings& training = run.training;
    std::string arguments;
    if (training.microBatch)
        arguments += fmt::format(" --per_device_train_batch_size {}", *training.microBatch);
    if (training.gradientAccumulation)
        arguments += fmt::format(" --gradient_accumulation_steps {}", *training.gradientAccumulation);
    if (training.gradientClipping)
        arguments += fmt::format(" --max_grad_norm {}", *training.gradientClipping);
    if (training.mixedPrecision == MixedPrecisionMode::Bf16)
        arguments += " --bf16 True";
    if (training.mixedPrecision == MixedPrecisionMode::Fp16)
        arguments += " --fp16 True";
    const Json::json_pointer learningRate("/optimizer/params/lr");
    if (deepSpeed.contains(learningRate) && deepSpeed[learningRate].is_number())
        arguments += fmt::format(" --learning_rate {}", deepSpeed[learningRate].get<double>());
    if (!arguments.empty())
        notes.push_back({NoteKind::InScript, "TrainingArguments",
                         "a script on Hugging Face's Trainer must say the same:" + arguments});
}

void refuseProblems(const RunConfig& run, const DeepSpeedOptions& options)
{
    Findings findings(fmt::format("strategy {}", run.strategy.name));
    for (const SettingProblem& problem : findDeepSpeedProblems(options, run.training.optimizer))
        findings.add(problem.place, problem.what, problem.expected);
    findings.throwIfAny();
}

/// Ulysses is the one way to split more than the states that a DeepSpeed JSON can say.
bool onlyByUlysses(const Strategy& strategy)
{
    Parallelism alone;
    alone.context = strategy.parallelism.context;
    alone.exchange = ContextExchange::Ulysses;
    return std::holds_alternative<DeepSpeedOptions>(strategy.options) && strategy.parallelism == alone;
}

} // namespace

std::vector<std::string> configFormatWords()
{
    std::vector<std::string> words{"accelerate-fsdp", "accelerate"};
    for (const auto& [format, name] : EnumNames<ConfigFormat>::table)
        words.emplace_back(name);
    return words;
}

ConfigFormat configFormat(const std::string& word, const StrategyOptions& options)
{
    if (const auto format = valueOf<ConfigFormat>(word))
        return *format;
    const ConfigFormat fsdp =
        std::holds_alternative<Fsdp1Options>(options) ? ConfigFormat::AccelerateFsdp1 : ConfigFormat::AccelerateFsdp2;
    if (word == "accelerate-fsdp")
        return fsdp;
    if (word == "accelerate") {
        if (std::holds_alternative<DeepSpeedOptions>(options))
            return ConfigFormat::AccelerateDeepSpeed;
        return std::holds_alternative<DdpOptions>(options) ? ConfigFormat::AccelerateDdp : fsdp;
    }
    std::string expected;
    for (const std::string& known : configFormatWords())
        expected += (expected.empty() ? "" : ", ") + known;
    throw InputError("command line", "--to", fmt::format("\"{}\" is not a format", word), expected);
}

ConfigExport writeConfig(const RunConfig& run, ConfigFormat format, const ExportOptions& options)
{
    ConfigExport result;
    result.format = format;
    const auto* zero = std::get_if<DeepSpeedOptions>(&run.strategy.options);
    const bool deepSpeedFile = format == ConfigFormat::DeepSpeed || format == ConfigFormat::AccelerateDeepSpeed;
    if (deepSpeedFile && zero == nullptr)
        throw InputError(fmt::format("strategy {}", run.strategy.name), std::string(nameOf(format)),
                         fmt::format("{} options have no place there", frameworkOf(run.strategy)),
                         "a deepspeed strategy, or shardplan convert");
    if (zero != nullptr)
        refuseProblems(run, *zero);

    if (format != ConfigFormat::DeepSpeed) {
        const Json yaml = accelerateYaml(run, format, inFolder(options.folder, kDeepSpeedFile), result.notes);
        result.files.push_back({kAccelerateFile, writeYaml(yaml)});
        result.launchCommand = accelerateCommand(run, format, options);
    } else {
        result.launchCommand = deepSpeedCommand(run, options);
    }
    if (deepSpeedFile) {
        DeepSpeedWriting writing;
        writing.optimizer = format == ConfigFormat::DeepSpeed;
        const Json json = deepSpeedJson(run, writing, result.notes);
        result.files.push_back({kDeepSpeedFile, json.dump(4) + "\n"});
        if (zero->stage == 3 && !zero->zero3Init && format == ConfigFormat::DeepSpeed)
            result.notes.push_back({NoteKind::InScript, "zero3_init",
                                    "off in the plan: the model is built before deepspeed.initialize, not under "
                                    "deepspeed.zero.Init; Hugging Face's Trainer always uses it at stage 3"});
        tellTrainingArguments(run, json, result.notes);
    }
    return result;
}

ConfigExport exportConfig(const Scenario& scenario, const Strategy& strategy, ConfigFormat format,
                          const ExportOptions& options)
{
    if (std::holds_alternative<NativeOptions>(strategy.options))
        throw InputError(fmt::format("strategy {}", strategy.name), "",
                         "is run by shardrun itself; no framework has a configuration for it", "another strategy");
    const bool deepSpeedFile = format == ConfigFormat::DeepSpeed || format == ConfigFormat::AccelerateDeepSpeed;
    if (std::holds_alternative<MegatronOptions>(strategy.options) ||
        !(strategy.parallelism.none() || (deepSpeedFile && onlyByUlysses(strategy))))
        throw InputError(
            fmt::format("strategy {}", strategy.name), "",
            "splits the model itself, which neither a DeepSpeed JSON nor an Accelerate YAML of these forms "
            "can say",
            "a strategy of data sharding alone, or with Ulysses under DeepSpeed");
    if (!strategy.parallelism.none() &&
        !refusals({scenario.model, scenario.cluster, scenario.training, strategy}).empty())
        throw InputError(fmt::format("strategy {}", strategy.name), "",
                         refusals({scenario.model, scenario.cluster, scenario.training, strategy}).front(),
                         "a combination that the framework takes");
    ConfigExport result = writeConfig(runConfigOf(scenario, strategy), format, options);
    const Precision& precision = scenario.training.precision;
    const bool fsdp = format == ConfigFormat::AccelerateFsdp1 || format == ConfigFormat::AccelerateFsdp2;
    if (fsdp || format == ConfigFormat::AccelerateDdp)
        result.notes.push_back(
            {NoteKind::InScript, "load dtype",
             fmt::format("the plan loads the weights in {}: from_pretrained(..., dtype=...)", nameOf(precision.load))});
    if (scenario.training.checkpointing == Checkpointing::Full && scenario.training.checkpointEvery > 1)
        result.notes.push_back({NoteKind::InScript, "activation checkpointing",
                                fmt::format("the plan checkpoints every {}th block; the files and Trainer switch all "
                                            "blocks or none",
                                            scenario.training.checkpointEvery)});
    if (scenario.training.checkpointSegment > 1)
        result.notes.push_back({NoteKind::InScript, "activation checkpointing",
                                fmt::format("the plan makes {} blocks in a row one checkpoint: "
                                            "torch.utils.checkpoint.checkpoint_sequential{}",
                                            scenario.training.checkpointSegment,
                                            std::holds_alternative<DeepSpeedOptions>(strategy.options)
                                                ? ", or activation_checkpoint_interval of a DeepSpeed PipelineModule; "
                                                  "number_checkpoints of the file says how many there are"
                                                : " with use_reentrant=False, and no checkpoint of a single block "
                                                  "beside it")});
    if (!strategy.parallelism.none())
        result.notes.push_back({NoteKind::InScript, "sequence_parallel_size",
                                "the model's attention has to exchange heads: deepspeed.sequence.layer."
                                "DistributedAttention, or UlyssesSPAttentionHF for Hugging Face's; each rank loads its "
                                "part of every sequence"});
    if (scenario.training.lora)
        result.notes.push_back({NoteKind::InScript, "lora",
                                fmt::format("the plan trains low-rank adapters (rank {}): peft's LoraConfig",
                                            scenario.training.lora->rank)});
    return result;
}

} // namespace shardwright
