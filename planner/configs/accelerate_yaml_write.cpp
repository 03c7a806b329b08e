#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/accelerate_yaml.hpp"

namespace shardwright {

namespace {

std::string joined(const std::vector<std::string>& words)
{
    std::string text;
    for (const std::string& word : words)
        text += (text.empty() ? "" : ",") + word;
    return text;
}

std::optional<DType> mixedDType(const TrainingSettings& training)
{
    switch (training.mixedPrecision.value_or(MixedPrecisionMode::No)) {
    case MixedPrecisionMode::No: return std::nullopt;
    case MixedPrecisionMode::Fp16: return DType::Fp16;
    case MixedPrecisionMode::Bf16:
    case MixedPrecisionMode::Fp8: return DType::Bf16;
    }
    return std::nullopt;
}

[[noreturn]] void cannotSay(const RunConfig& run, ConfigFormat format, const std::string& what,
                            const std::string& expected)
{
    throw InputError(fmt::format("strategy {}", run.strategy.name), std::string(nameOf(format)), what, expected);
}

class Writer {
public:
    Writer(const RunConfig& run, ConfigFormat format, std::vector<ConfigNote>& notes)
        : m_run(run), m_format(format), m_notes(notes)
    {
    }

    Json write(const std::string& deepSpeedFile);

private:
    void note(NoteKind kind, std::string setting, std::string text)
    {
        m_notes.push_back({kind, std::move(setting), std::move(text)});
    }

    template <typename Options> const Options& options() const
    {
        if (const auto* found = std::get_if<Options>(&m_run.strategy.options))
            return *found;
        cannotSay(m_run, m_format, fmt::format("{} options have no place there", frameworkOf(m_run.strategy)),
                  "a strategy of that framework, or shardplan convert");
    }

    Json fsdp1();
    Json fsdp2();
    Json deepSpeedPlugin();
    Json deepSpeedFile(const std::string& path) const;
    void ddp();
    template <typename Options> void writeWrapping(Json& json, const Options& options);
    template <typename Options> void tellFsdpScript(const Options& options, bool version1);
    void tellTraining();
    void writeParallelism(Json& json, const Fsdp2Options& options);
    Checkpointing checkpointing() const { return m_run.training.checkpointing.value_or(Checkpointing::None); }

    const RunConfig& m_run;
    ConfigFormat m_format;
    std::vector<ConfigNote>& m_notes;
};

template <typename Options> void Writer::writeWrapping(Json& json, const Options& options)
{
    json["fsdp_auto_wrap_policy"] = nameOf(options.wrap);
    if (options.wrap == WrapPolicy::Size)
        json["fsdp_min_num_params"] = options.minNumParams;
    if (options.wrap != WrapPolicy::Transformer)
        return;
    if (m_run.wrapClasses.empty())
        note(NoteKind::Information, "fsdp_transformer_layer_cls_to_wrap",
             "not written: Accelerate takes the model's _no_split_modules; with --model its block class is named");
    else
        json["fsdp_transformer_layer_cls_to_wrap"] = joined(m_run.wrapClasses);
}

// MixedPrecision(param, reduce, buffer) of FSDP1, MixedPrecisionPolicy(param, reduce) of FSDP2: accelerator.py sets all
// of them to the run's mixed precision.
template <typename Options> void Writer::tellFsdpScript(const Options& options, bool version1)
{
    const auto mixed = mixedDType(m_run.training);
    std::string policy;
    const auto differs = [&](const std::optional<DType>& dtype, const char* name) {
        if (dtype && dtype != mixed)
            policy += fmt::format("{}{}={}", policy.empty() ? "" : ", ", name, nameOf(*dtype));
    };
    differs(options.paramDtype, "param_dtype");
    differs(options.reduceDtype, "reduce_dtype");
    if constexpr (std::is_same_v<Options, Fsdp1Options>)
        differs(options.bufferDtype, "buffer_dtype");
    if (!policy.empty())
        note(NoteKind::InScript, "mixed_precision_policy",
             fmt::format("FullyShardedDataParallelPlugin(mixed_precision_policy={}({})): the YAML sets every dtype to "
                         "mixed_precision",
                         version1 ? "MixedPrecision" : "MixedPrecisionPolicy", policy));
    if (mixed && !options.upcastTrainable)
        note(NoteKind::NotSayable, "upcast",
             "Accelerate upcasts trainable parameters to fp32 under mixed precision; the plan does not");
    if (!options.noSync)
        note(NoteKind::InScript, "no_sync",
             "GradientAccumulationPlugin(sync_each_batch=True): the plan reduces in every micro-step");
}

Json Writer::fsdp1()
{
    const auto& fsdp = options<Fsdp1Options>();
    if (fsdp.cpuRamEfficientLoading && !fsdp.syncModuleStates)
        cannotSay(m_run, m_format, "cpu_ram_efficient_loading without sync_module_states",
                  "both, or neither: Accelerate refuses it");
    Json json = {
        {"fsdp_version", 1},
        // not fsdp_reshard_after_forward, which the questionnaire writes: version 1 runs FULL_SHARD whatever that says
        {"fsdp_sharding_strategy", nameOf(fsdp.sharding)},
        {"fsdp_offload_params", fsdp.offloadParams},
        {"fsdp_backward_prefetch", nameOf(fsdp.backwardPrefetch)},
        {"fsdp_forward_prefetch", fsdp.forwardPrefetch},
        {"fsdp_use_orig_params", fsdp.useOrigParams},
        {"fsdp_sync_module_states", fsdp.syncModuleStates},
        {"fsdp_cpu_ram_efficient_loading", fsdp.cpuRamEfficientLoading},
        {"fsdp_state_dict_type", "SHARDED_STATE_DICT"},
    };
    writeWrapping(json, fsdp);
    json["fsdp_activation_checkpointing"] = checkpointing() == Checkpointing::Full;
    if (checkpointing() == Checkpointing::Cpu || checkpointing() == Checkpointing::Partitioned)
        note(NoteKind::NotSayable, "activation checkpointing",
             fmt::format("{}: FSDP1 has nothing like it in Accelerate; the YAML checkpoints nothing",
                         nameOf(checkpointing())));
    tellFsdpScript(fsdp, true);
    if (!fsdp.limitAllGathers)
        note(NoteKind::InScript, "limit_all_gathers", "FullyShardedDataParallelPlugin(limit_all_gathers=False)");
    const bool hybrid =
        fsdp.sharding == ShardingStrategy::HybridShard || fsdp.sharding == ShardingStrategy::HybridShardZero2;
    const std::int64_t perNode = m_run.launch.processes / std::max<std::int64_t>(1, m_run.launch.nodes);
    if (hybrid && fsdp.shardGroup != 0 && fsdp.shardGroup != perNode)
        note(NoteKind::NotSayable, "shard group",
             fmt::format("Accelerate's FSDP1 shards over the GPUs of a node, {}; the plan over {}; FSDP2 can say it",
                         perNode, fsdp.shardGroup));
    return json;
}

void Writer::writeParallelism(Json& json, const Fsdp2Options& fsdp)
{
    const std::int64_t replicas = fsdp.replicate == 0 ? m_run.launch.nodes : fsdp.replicate;
    if (replicas == 1)
        return;
    const std::int64_t processes = m_run.launch.processes;
    if (processes % replicas != 0 || processes / replicas < 2)
        cannotSay(m_run, m_format, fmt::format("{} replicas of {} processes", replicas, processes),
                  "a number of processes that gives each replica at least two");
    json["parallelism_config"] = {{"parallelism_config_dp_replicate_size", replicas},
                                  {"parallelism_config_dp_shard_size", processes / replicas},
                                  {"parallelism_config_tp_size", 1},
                                  {"parallelism_config_cp_size", 1}};
}

Json Writer::fsdp2()
{
    const auto& fsdp = options<Fsdp2Options>();
    if (fsdp.noShard)
        cannotSay(m_run, m_format, "no sharding at all: Accelerate refuses FSDP2 over one rank per shard group",
                  "accelerate-ddp");
    Json json = {
        {"fsdp_version", 2},
        {"fsdp_reshard_after_forward", fsdp.reshardAfterForward},
        {"fsdp_offload_params", fsdp.offloadParams},
        {"fsdp_cpu_ram_efficient_loading", fsdp.cpuRamEfficientLoading},
        {"fsdp_state_dict_type", "SHARDED_STATE_DICT"},
    };
    writeWrapping(json, fsdp);
    const bool cpu = checkpointing() == Checkpointing::Cpu;
    const bool full = checkpointing() == Checkpointing::Full;
    json["fsdp_activation_checkpointing"] = cpu || (full && fsdp.checkpointChildren);
    if (cpu)
        json["fsdp_activation_checkpointing_offload"] = true;
    if (cpu && !fsdp.checkpointChildren)
        note(NoteKind::NotSayable, "activation checkpointing",
             "Accelerate's FSDP2 checkpoints the children of each block, the plan whole blocks");
    if (full && !fsdp.checkpointChildren)
        note(
            NoteKind::InScript, "activation checkpointing",
            "gradient_checkpointing=True of TrainingArguments, or model.gradient_checkpointing_enable(): whole blocks; "
            "fsdp_activation_checkpointing would wrap the children of each block, which keeps more");
    if (checkpointing() == Checkpointing::Partitioned)
        note(NoteKind::NotSayable, "activation checkpointing", "partitioned: FSDP2 has nothing like it");
    tellFsdpScript(fsdp, false);
    if (fsdp.reshardGroup > 0)
        note(NoteKind::NotSayable, "reshard_after_forward",
             fmt::format("resharding to {} ranks: Accelerate takes true or false only", fsdp.reshardGroup));
    if (fsdp.offloadParams && !fsdp.pinMemory)
        note(NoteKind::InScript, "pin_memory",
             "FullyShardedDataParallelPlugin(cpu_offload=CPUOffloadPolicy(pin_memory=False))");
    if (fsdp.forwardPrefetch)
        note(NoteKind::InScript, "forward_prefetch", "set_modules_to_forward_prefetch of each FSDP module");
    if (fsdp.keepLastBlock)
        note(NoteKind::InScript, "reshard_after_forward",
             "fully_shard of the last block with reshard_after_forward=False: the YAML has one value for all blocks");
    if (!fsdp.separateHeadUnit)
        note(NoteKind::NotSayable, "head unit",
             "Accelerate 1.15 shards the embedding, and the final norm with the head, as units of their own; the plan "
             "leaves them in the root");
    return json;
}

Json Writer::deepSpeedPlugin()
{
    const auto& zero = options<DeepSpeedOptions>();
    if (zero.offloadOptimizer == OffloadDevice::Nvme || zero.offloadParam == OffloadDevice::Nvme)
        cannotSay(m_run, m_format, "offload to nvme: the launcher does not hand the path over", "accelerate-deepspeed");
    DeepSpeedOptions said = deepSpeedFileDefaults();
    said.stage = zero.stage;
    said.offloadOptimizer = zero.offloadOptimizer;
    said.offloadParam = zero.offloadParam;
    said.gather16bitWeightsOnModelSave = zero.gather16bitWeightsOnModelSave;
    const Json all = deepSpeedOptionsJson(zero).flatten();
    const Json sayable = deepSpeedOptionsJson(said).flatten();
    for (const auto& item : all.items())
        if (!sayable.contains(item.key()) || sayable[item.key()] != item.value())
            note(NoteKind::NotSayable, item.key(),
                 fmt::format("{}: here DeepSpeed's default holds; accelerate-deepspeed can say it",
                             item.value().dump()));

    Json json = {{"zero_stage", zero.stage},
                 {"offload_optimizer_device", nameOf(zero.offloadOptimizer)},
                 {"offload_param_device", nameOf(zero.offloadParam)},
                 {"zero3_init_flag", zero.stage == 3 && zero.zero3Init},
                 {"zero3_save_16bit_model", zero.gather16bitWeightsOnModelSave},
                 {"deepspeed_multinode_launcher", "standard"}};
    if (m_run.training.gradientAccumulation)
        json["gradient_accumulation_steps"] = *m_run.training.gradientAccumulation;
    const double clipping = m_run.training.gradientClipping.value_or(1.0);
    json["gradient_clipping"] = clipping > 0 ? clipping : 1.0;
    if (clipping <= 0)
        note(NoteKind::NotSayable, "gradient_clipping",
             "off: the plugin drops 0 and DeepSpeed clips at 1.0; accelerate-deepspeed can say it");
    return json;
}

Json Writer::deepSpeedFile(const std::string& path) const
{
    const auto& zero = options<DeepSpeedOptions>();
    return {{"deepspeed_config_file", path},
            {"zero3_init_flag", zero.stage == 3 && zero.zero3Init},
            {"deepspeed_multinode_launcher", "standard"}};
}

void Writer::ddp()
{
    const auto& ddp = options<DdpOptions>();
    const DdpOptions torch{25_MiB, false}; // what Accelerate's DistributedDataParallelKwargs defaults to
    if (ddp != torch)
        note(NoteKind::InScript, "DistributedDataParallelKwargs",
             fmt::format("Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb={}, "
                         "gradient_as_bucket_view={})])",
                         ddp.bucketCap.count() >> 20, ddp.gradientAsBucketView ? "True" : "False"));
    if (checkpointing() != Checkpointing::None)
        note(
            NoteKind::InScript, "activation checkpointing",
            fmt::format("{}: gradient_checkpointing of TrainingArguments, or the model code", nameOf(checkpointing())));
}

void Writer::tellTraining()
{
    const TrainingSettings& training = m_run.training;
    const auto tell = [&](const char* setting, const std::string& text) { note(NoteKind::InScript, setting, text); };
    if (training.microBatch)
        tell("micro batch",
             fmt::format("per_device_train_batch_size={}, or the data loader's batch size", *training.microBatch));
    if (m_format == ConfigFormat::AccelerateDeepSpeedPlugin)
        return;
    if (training.gradientAccumulation && *training.gradientAccumulation != 1)
        tell("gradient accumulation", fmt::format("gradient_accumulation_steps={} of TrainingArguments or Accelerator",
                                                  *training.gradientAccumulation));
    if (training.gradientClipping && *training.gradientClipping > 0)
        tell("gradient clipping",
             fmt::format("max_grad_norm={0}, or accelerator.clip_grad_norm_(model.parameters(), {0})",
                         *training.gradientClipping));
    if (training.optimizer)
        tell("optimizer", fmt::format("the training script makes it: {}", nameOf(*training.optimizer)));
    if (checkpointing() == Checkpointing::Selective)
        tell("activation checkpointing", "selective: the model code does it");
}

Json Writer::write(const std::string& deepSpeedFile)
{
    const bool single = m_format == ConfigFormat::AccelerateDdp && m_run.launch.processes == 1;
    Json json = {{"compute_environment", "LOCAL_MACHINE"}, {"debug", false}, {"distributed_type", "FSDP"}};
    if (m_format != ConfigFormat::AccelerateDeepSpeed) { // refused beside a DeepSpeed file
        if (m_run.training.mixedPrecision)
            json["mixed_precision"] = nameOf(*m_run.training.mixedPrecision);
        else
            note(NoteKind::Information, "mixed_precision",
                 "not known: the launch command asks for it; without it everything is computed in the load dtype");
    }
    if (m_run.launch.processes > 0)
        json["num_processes"] = m_run.launch.processes; // over all machines
    else
        note(NoteKind::Information, "num_processes", "not known: add --num_processes to the launch command");
    json["num_machines"] = m_run.launch.nodes;
    json["machine_rank"] = 0;
    json["main_training_function"] = "main";
    json["rdzv_backend"] = "static";
    json["same_network"] = true;
    json["use_cpu"] = false;

    switch (m_format) {
    case ConfigFormat::AccelerateFsdp1: json["fsdp_config"] = fsdp1(); break;
    case ConfigFormat::AccelerateFsdp2:
        json["fsdp_config"] = fsdp2();
        writeParallelism(json, options<Fsdp2Options>());
        break;
    case ConfigFormat::AccelerateDeepSpeed:
        json["distributed_type"] = "DEEPSPEED";
        json["deepspeed_config"] = this->deepSpeedFile(deepSpeedFile);
        break;
    case ConfigFormat::AccelerateDeepSpeedPlugin:
        json["distributed_type"] = "DEEPSPEED";
        json["deepspeed_config"] = deepSpeedPlugin();
        if (checkpointing() != Checkpointing::None)
            note(NoteKind::InScript, "activation checkpointing",
                 fmt::format("{}: gradient_checkpointing of TrainingArguments, or the model code",
                             nameOf(checkpointing())));
        break;
    case ConfigFormat::AccelerateDdp:
        json["distributed_type"] = single ? "NO" : "MULTI_GPU";
        ddp();
        break;
    case ConfigFormat::DeepSpeed: break;
    }
    if (m_format != ConfigFormat::AccelerateDeepSpeed)
        tellTraining();
    addCarried(json, m_run.carriedAccelerate);
    if (m_run.carriedAccelerate.contains("fsdp_config") &&
        m_run.carriedAccelerate["fsdp_config"].contains("fsdp_state_dict_type") && json.contains("fsdp_config"))
        json["fsdp_config"]["fsdp_state_dict_type"] = m_run.carriedAccelerate["fsdp_config"]["fsdp_state_dict_type"];
    return json;
}

} // namespace

Json accelerateYaml(const RunConfig& run, ConfigFormat format, const std::string& deepSpeedFile,
                    std::vector<ConfigNote>& notes)
{
    return Writer(run, format, notes).write(deepSpeedFile);
}

} // namespace shardwright
