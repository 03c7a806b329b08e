#include <algorithm>

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/accelerate_section.hpp"
#include "planner/configs/accelerate_yaml.hpp"
#include "planner/configs/yaml.hpp"

namespace shardwright {

namespace {

// The fields of ClusterConfig and BaseConfig, and the two legacy keys that process_config converts.
const std::vector<std::string> kTopLevelKeys{"compute_environment",
                                             "distributed_type",
                                             "mixed_precision",
                                             "use_cpu",
                                             "debug",
                                             "num_processes",
                                             "machine_rank",
                                             "num_machines",
                                             "gpu_ids",
                                             "main_process_ip",
                                             "main_process_port",
                                             "rdzv_backend",
                                             "same_network",
                                             "main_training_function",
                                             "enable_cpu_affinity",
                                             "fp8_config",
                                             "deepspeed_config",
                                             "fsdp_config",
                                             "parallelism_config",
                                             "megatron_lm_config",
                                             "mpirun_config",
                                             "downcast_bf16",
                                             "tpu_name",
                                             "tpu_zone",
                                             "tpu_use_cluster",
                                             "tpu_use_sudo",
                                             "command_file",
                                             "commands",
                                             "tpu_vm",
                                             "tpu_env",
                                             "dynamo_config",
                                             "fp16",
                                             "dynamo_backend"};
// What the neutral model holds; everything else of the top level is carried.
const std::vector<std::string> kModelledKeys{
    "compute_environment", "distributed_type", "mixed_precision",  "num_processes",
    "num_machines",        "fsdp_config",      "deepspeed_config", "fp16",
    "parallelism_config"};
// How the launcher works, which no plan depends on and nobody needs to be told about.
const std::vector<std::string> kLauncherKeys{"use_cpu",
                                             "debug",
                                             "machine_rank",
                                             "gpu_ids",
                                             "main_process_ip",
                                             "main_process_port",
                                             "rdzv_backend",
                                             "same_network",
                                             "main_training_function",
                                             "enable_cpu_affinity",
                                             "downcast_bf16",
                                             "tpu_use_cluster",
                                             "tpu_use_sudo",
                                             "tpu_env",
                                             "commands",
                                             "command_file",
                                             "tpu_name",
                                             "tpu_vm",
                                             "tpu_zone"};

constexpr std::int64_t kMostProcesses = std::int64_t{1} << 40;

bool isIn(const std::vector<std::string>& list, const std::string& key)
{
    return std::find(list.begin(), list.end(), key) != list.end();
}

class Reader {
public:
    Reader(const Json& json, Findings& findings, const DeepSpeedContext& context, const ConfigFileReader& readFile)
        : m_root(json, findings), m_context(context), m_readFile(readFile)
    {
    }

    ImportedConfig read();

private:
    void note(NoteKind kind, std::string setting, std::string text)
    {
        m_config.notes.push_back({kind, std::move(setting), std::move(text)});
    }

    AccelerateSection section(const std::string& key, const std::string& prefix);
    void readTopLevel();
    void readMixedPrecision();
    void readFsdp();
    void readFsdp1(AccelerateSection& fsdp);
    void readFsdp2(AccelerateSection& fsdp);
    void readParallelism(Fsdp2Options& options);
    template <typename Options> void readFsdpCommon(AccelerateSection& fsdp, Options& options);
    void readActivationCheckpointing(AccelerateSection& fsdp, bool version2);
    void ignoredIn(AccelerateSection& fsdp, const std::string& key, const std::string& why);
    void keepUnread(const AccelerateSection& section, const std::string& name);
    void readDeepSpeed();
    void readDeepSpeedPlugin(AccelerateSection& deepspeed);
    void readDeepSpeedFile(AccelerateSection& deepspeed, const std::string& path);
    void readDdp();

    JsonCursor m_root;
    DeepSpeedContext m_context;
    const ConfigFileReader& m_readFile;
    Json m_empty = Json::object();
    ImportedConfig m_config;
};

AccelerateSection Reader::section(const std::string& key, const std::string& prefix)
{
    const auto member = m_root.find(key);
    if (member && member->expectObject())
        return {*member, prefix};
    return {JsonCursor(m_empty, m_root.findings(), "/" + key), prefix};
}

void Reader::readMixedPrecision()
{
    m_config.run.training.mixedPrecision = MixedPrecisionMode::No;
    if (const auto member = m_root.find("mixed_precision")) {
        if (member->json() == Json(false))
            member->complain("no without quotes is false to YAML, and Accelerate fails on it",
                             "'no', fp16, bf16 or fp8");
        else if (const auto mode = member->asEnum<MixedPrecisionMode>())
            m_config.run.training.mixedPrecision = *mode;
    } else if (const auto legacy = m_root.find("fp16")) {
        if (legacy->asBool().value_or(false))
            m_config.run.training.mixedPrecision = MixedPrecisionMode::Fp16;
        note(NoteKind::Rewritten, "/fp16", "the old form of mixed_precision");
    }
}

void Reader::readTopLevel()
{
    m_root.rejectUnknownKeys(kTopLevelKeys);
    std::string environment = "LOCAL_MACHINE";
    m_root.read("compute_environment", environment);
    if (environment != "LOCAL_MACHINE")
        m_root.findings().add("/compute_environment", "is " + environment, "LOCAL_MACHINE");

    LaunchSettings& launch = m_config.run.launch;
    m_root.read("num_machines", launch.nodes, 1, kMostProcesses);
    const auto processes = m_root.find("num_processes");
    if (processes && processes->json() != Json(-1))
        launch.processes = processes->asInteger(1, kMostProcesses).value_or(0);
    if (launch.processes > 0 && launch.processes % launch.nodes != 0)
        m_root.findings().add(
            "/num_processes",
            fmt::format("{} processes do not divide among {} machines", launch.processes, launch.nodes),
            "a multiple of num_machines: it counts the processes of all machines");
    if (launch.processes == 0)
        note(NoteKind::Information, "/num_processes", "absent: `accelerate launch` then needs --num_processes");
    else
        m_context.world = launch.processes;

    for (const auto& item : m_root.json().items()) {
        const std::string& key = item.key();
        if (!isIn(kTopLevelKeys, key) || isIn(kModelledKeys, key) || item.value().is_null())
            continue;
        m_config.run.carriedAccelerate[key] = item.value();
        const bool empty = item.value().is_structured() && item.value().empty();
        if (!isIn(kLauncherKeys, key) && !empty)
            note(NoteKind::Kept, "/" + key, "kept on export; a plan does not follow it");
    }
}

void Reader::ignoredIn(AccelerateSection& fsdp, const std::string& key, const std::string& why)
{
    if (const auto member = fsdp.find(key))
        note(NoteKind::Ignored, member->pointer(), why);
}

void Reader::keepUnread(const AccelerateSection& section, const std::string& name)
{
    for (const std::string& key : section.unreadKeys()) {
        m_config.run.carriedAccelerate[name][key] = section.object().json()[key];
        note(NoteKind::Ignored, "/" + name + "/" + key,
             "Accelerate 1.15 sets it as an argument that nothing reads; it is kept");
    }
}

template <typename Options> void Reader::readFsdpCommon(AccelerateSection& fsdp, Options& options)
{
    options.offloadParams = fsdp.flag("fsdp_offload_params").value_or(false);
    options.cpuRamEfficientLoading = fsdp.flag("fsdp_cpu_ram_efficient_loading").value_or(true);
    const bool synchronised = fsdp.flag("fsdp_sync_module_states").value_or(true);
    // utils/launch.py prepare_multi_gpu_env
    if (options.cpuRamEfficientLoading && !synchronised)
        m_root.findings().add("/fsdp_config/fsdp_sync_module_states", "is false with fsdp_cpu_ram_efficient_loading",
                              "true: otherwise the ranks that load nothing stay empty");
    const auto policy = fsdp.choice("fsdp_auto_wrap_policy", {"TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"});
    constexpr std::array kPolicies{WrapPolicy::Transformer, WrapPolicy::Size, WrapPolicy::None};
    options.wrap = policy ? kPolicies[*policy] : WrapPolicy::None;
    if (!policy)
        note(NoteKind::Information, "/fsdp_config/fsdp_auto_wrap_policy",
             "absent: nothing is wrapped, so the whole model is one unit that is gathered at once");
    options.minNumParams = fsdp.integer("fsdp_min_num_params", 0, INT64_MAX).value_or(options.minNumParams);
    if (const auto classes = fsdp.find("fsdp_transformer_layer_cls_to_wrap")) {
        const std::string text = classes->asString().value_or("");
        if (text.find(' ') != std::string::npos)
            classes->complain("has spaces, and Accelerate looks for a class of exactly that name",
                              "class names separated by commas alone");
        for (std::size_t start = 0; start <= text.size();) {
            const std::size_t end = std::min(text.find(',', start), text.size());
            if (end > start)
                m_config.run.wrapClasses.push_back(text.substr(start, end - start));
            start = end + 1;
        }
    }
    for (const char* key : {"fsdp_state_dict_type", "fsdp_ignored_modules"})
        if (const auto member = fsdp.find(key)) {
            m_config.run.carriedAccelerate["fsdp_config"][key] = member->json();
            if (std::string_view(key) == "fsdp_ignored_modules")
                note(NoteKind::Kept, member->pointer(), "kept on export; a plan shards these modules too");
        }
}

void Reader::readActivationCheckpointing(AccelerateSection& fsdp, bool version2)
{
    const bool on = fsdp.flag("fsdp_activation_checkpointing").value_or(false);
    const bool offload = fsdp.flag("fsdp_activation_checkpointing_offload").value_or(false);
    if (offload && !(on && version2))
        m_root.findings().add("/fsdp_config/fsdp_activation_checkpointing_offload",
                              "is true without fsdp_activation_checkpointing or under version 1",
                              "fsdp_activation_checkpointing: true and fsdp_version: 2");
    if (on) // off says nothing: the script may still checkpoint
        m_config.run.training.checkpointing = offload ? Checkpointing::Cpu : Checkpointing::Full;
}

void Reader::readFsdp1(AccelerateSection& fsdp)
{
    Fsdp1Options options;
    const std::vector<std::string> names{"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD",
                                         "HYBRID_SHARD_ZERO2"};
    const auto sharding = fsdp.choice("fsdp_sharding_strategy", names);
    options.sharding = static_cast<ShardingStrategy>(sharding.value_or(0));
    if (const auto reshard = fsdp.find("fsdp_reshard_after_forward");
        reshard && reshard->json() != Json(names[sharding.value_or(0)]))
        note(NoteKind::Ignored, reshard->pointer(),
             fmt::format("under version 1 the launcher always hands over fsdp_sharding_strategy, {} here: that is what "
                         "runs; write fsdp_sharding_strategy",
                         names[sharding.value_or(0)]));
    const auto prefetch = fsdp.choice("fsdp_backward_prefetch", {"BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH"});
    constexpr std::array kPrefetch{BackwardPrefetch::Pre, BackwardPrefetch::Post, BackwardPrefetch::None};
    options.backwardPrefetch = prefetch ? kPrefetch[*prefetch] : BackwardPrefetch::None;
    if (!prefetch)
        note(NoteKind::Information, "/fsdp_config/fsdp_backward_prefetch", "absent: no backward prefetch");
    ignoredIn(fsdp, "fsdp_backward_prefetch_policy", "read by nothing; the key is fsdp_backward_prefetch");
    options.forwardPrefetch = fsdp.flag("fsdp_forward_prefetch").value_or(false);
    options.useOrigParams = fsdp.flag("fsdp_use_orig_params").value_or(true); // the launcher's default
    options.syncModuleStates = fsdp.flag("fsdp_sync_module_states").value_or(true);
    readFsdpCommon(fsdp, options);
    readActivationCheckpointing(fsdp, false);
    const auto parallelism = m_root.find("parallelism_config");
    if (parallelism && !parallelism->json().empty())
        parallelism->complain("is given under fsdp_version 1", "fsdp_version: 2");
    m_config.format = ConfigFormat::AccelerateFsdp1;
    m_config.run.strategy = {describeOptions(options), options};
}

void Reader::readParallelism(Fsdp2Options& options)
{
    AccelerateSection sizes = section("parallelism_config", "");
    const auto size = [&](const char* name) {
        return sizes.integer(std::string("parallelism_config_") + name, 1, 1 << 24).value_or(1);
    };
    options.replicate = size("dp_replicate_size");
    const std::int64_t shard = size("dp_shard_size");
    std::int64_t others = 1;
    for (const char* name : {"tp_size", "cp_size", "sp_size"}) {
        const std::int64_t one = size(name);
        others = checkedMultiply(others, one);
        if (one > 1) {
            const std::string key = std::string("parallelism_config_") + name;
            m_config.run.carriedAccelerate["parallelism_config"][key] = one;
            note(NoteKind::Kept, "/parallelism_config/" + key, "kept on export; a plan does not follow it");
        }
    }
    for (const std::string& key : sizes.unreadKeys())
        m_config.run.carriedAccelerate["parallelism_config"][key] = sizes.object().json()[key];
    if (sizes.object().json().empty())
        return;
    // parallelism_config.py _validate_accelerator
    const std::int64_t processes = m_config.run.launch.processes;
    const std::int64_t product = checkedMultiply(checkedMultiply(options.replicate, shard), others);
    if (processes > 0 && product != processes)
        sizes.object().complain(fmt::format("sizes multiply to {}", product),
                                fmt::format("num_processes, {}", processes));
    if (shard == 1 && options.replicate > 1)
        sizes.object().complain("leaves FSDP nothing to shard over (dp_shard_size 1)",
                                "dp_shard_size above 1, or distributed_type MULTI_GPU");
}

void Reader::readFsdp2(AccelerateSection& fsdp)
{
    Fsdp2Options options;
    if (const auto member = fsdp.find("fsdp_reshard_after_forward")) {
        if (const auto value = fsdp.flag("fsdp_reshard_after_forward"))
            options.reshardAfterForward = *value;
    }
    for (const char* key : {"fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_forward_prefetch",
                            "fsdp_use_orig_params", "fsdp_sync_module_states"})
        ignoredIn(fsdp, key, "version 2 does not read it");
    readFsdpCommon(fsdp, options);
    readActivationCheckpointing(fsdp, true);
    options.checkpointChildren = m_config.run.training.checkpointing.has_value();
    readParallelism(options);
    m_config.format = ConfigFormat::AccelerateFsdp2;
    m_config.run.strategy = {describeOptions(options), options};
}

void Reader::readFsdp()
{
    AccelerateSection fsdp = section("fsdp_config", "fsdp_");
    const std::int64_t version = fsdp.integer("fsdp_version", 1, 2).value_or(1);
    if (version == 2)
        readFsdp2(fsdp);
    else
        readFsdp1(fsdp);
    keepUnread(fsdp, "fsdp_config");
}

void Reader::readDeepSpeedPlugin(AccelerateSection& deepspeed)
{
    DeepSpeedOptions options = deepSpeedFileDefaults();
    constexpr int kPluginStage = 2; // utils/dataclasses.py: ACCELERATE_DEEPSPEED_ZERO_STAGE, 2 when absent
    options.stage = static_cast<int>(deepspeed.integer("zero_stage", 0, 3).value_or(kPluginStage));
    options.gather16bitWeightsOnModelSave = deepspeed.flag("zero3_save_16bit_model").value_or(false);
    options.zero3Init = options.stage != 3 || deepspeed.flag("zero3_init_flag").value_or(true);
    deepspeed.find("zero3_init_flag");
    const auto readOffload = [&](const std::string& what, OffloadDevice& device, std::string& path) {
        if (const auto member = deepspeed.find(what + "_device"))
            device = member->asEnum<OffloadDevice>().value_or(OffloadDevice::None);
        const auto member = deepspeed.find(what + "_nvme_path");
        if (member)
            path = member->asString().value_or(path);
        if (device == OffloadDevice::Nvme)
            note(NoteKind::Ignored, "/deepspeed_config/" + what + "_nvme_path",
                 "the launcher does not hand it over, so DeepSpeed swaps to a folder named \"none\"; name a DeepSpeed "
                 "file instead, or set ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH and ..._PARAM_NVME_PATH");
    };
    readOffload("offload_optimizer", options.offloadOptimizer, options.nvmePath);
    readOffload("offload_param", options.offloadParam, options.paramNvmePath);

    TrainingSettings& training = m_config.run.training;
    const auto isAuto = [](const std::optional<JsonCursor>& member) {
        return member && member->json() == Json("auto");
    };
    if (isAuto(deepspeed.find("gradient_accumulation_steps")))
        note(NoteKind::Automatic, "/deepspeed_config/gradient_accumulation_steps", "\"auto\": the script decides");
    else
        training.gradientAccumulation = deepspeed.integer("gradient_accumulation_steps", 1, kMostProcesses);
    training.gradientClipping = 1.0; // accelerator.py _prepare_deepspeed fills "auto" with 1.0
    if (const auto clipping = deepspeed.find("gradient_clipping"); clipping && !isAuto(clipping)) {
        if (const auto value = clipping->asNumber(0, std::numeric_limits<double>::max()); value && *value > 0)
            training.gradientClipping = *value;
        else if (value)
            note(NoteKind::Ignored, clipping->pointer(),
                 "0 is dropped by the plugin, so DeepSpeed's own default 1.0 holds (0.19.3 and later)");
    }
    for (const SettingProblem& problem : findDeepSpeedProblems(options))
        m_root.findings().add("/deepspeed_config", problem.place + " " + problem.what, problem.expected);
    m_config.format = ConfigFormat::AccelerateDeepSpeedPlugin;
    m_config.run.strategy = {describeOptions(options), options};
}

void Reader::readDeepSpeedFile(AccelerateSection& deepspeed, const std::string& path)
{
    // utils/dataclasses.py _deepspeed_config_checks
    for (const char* key :
         {"gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
          "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path", "zero3_save_16bit_model"})
        if (const auto member = deepspeed.find(key))
            member->complain("stands beside deepspeed_config_file", "this in the DeepSpeed file, not here");
    if (const auto member = m_root.find("mixed_precision"))
        member->complain("stands beside deepspeed_config_file", "bf16 or fp16 in the DeepSpeed file, not here");

    DeepSpeedContext context = m_context;
    context.underAccelerate = true;
    ImportedConfig inner;
    try {
        inner = readDeepSpeedJson(m_readFile(path), path, context);
    } catch (const InputError& error) {
        m_root.findings().add(error);
        return;
    }
    m_config.run.strategy = inner.run.strategy;
    m_config.run.training = inner.run.training;
    m_config.run.carriedDeepSpeed = inner.run.carriedDeepSpeed;
    for (ConfigNote& inside : inner.notes)
        m_config.notes.push_back({inside.kind, path + ": " + inside.setting, std::move(inside.text)});
    auto& options = std::get<DeepSpeedOptions>(m_config.run.strategy.options);
    options.zero3Init = options.stage != 3 || deepspeed.flag("zero3_init_flag").value_or(true);
    m_config.format = ConfigFormat::AccelerateDeepSpeed;
}

void Reader::readDeepSpeed()
{
    AccelerateSection deepspeed = section("deepspeed_config", "");
    for (const char* key : {"deepspeed_multinode_launcher", "deepspeed_hostfile", "deepspeed_exclusion_filter",
                            "deepspeed_inclusion_filter", "deepspeed_moe_layer_cls_names"})
        if (const auto member = deepspeed.find(key))
            m_config.run.carriedAccelerate["deepspeed_config"][key] = member->json();
    const auto file = deepspeed.find("deepspeed_config_file");
    const std::string path = file ? file->asString().value_or("none") : "none";
    if (path != "none")
        readDeepSpeedFile(deepspeed, path);
    else
        readDeepSpeedPlugin(deepspeed);
    deepspeed.find("zero3_init_flag");
    keepUnread(deepspeed, "deepspeed_config");
}

void Reader::readDdp()
{
    DdpOptions options;
    options.gradientAsBucketView = false; // DistributedDataParallelKwargs of Accelerate
    m_config.format = ConfigFormat::AccelerateDdp;
    m_config.run.strategy = {describeOptions(options), options};
}

ImportedConfig Reader::read()
{
    readTopLevel();
    const auto type = m_root.require("distributed_type", "FSDP, DEEPSPEED, MULTI_GPU or 'NO'");
    const std::string name = type && type->json().is_string() ? type->json().get<std::string>() : "";
    readMixedPrecision();
    if (type && type->json() == Json(false))
        type->complain("NO without quotes is false to YAML", "'NO'");
    else if (name == "FSDP")
        readFsdp();
    else if (name == "DEEPSPEED")
        readDeepSpeed();
    else if (name == "MULTI_GPU" || name == "NO")
        readDdp();
    else if (type)
        type->complain("is " + type->json().dump(-1, ' ', false, Json::error_handler_t::replace),
                       "FSDP, DEEPSPEED, MULTI_GPU or 'NO'");
    // commands/launch.py _validate_launch_command; config_args.py fills in 1 for NO
    if (name == "MULTI_GPU" && m_config.run.launch.processes == 1)
        m_root.findings().add("/num_processes", "is 1 with distributed_type MULTI_GPU", "at least 2, or 'NO'");
    if (name == "NO")
        m_config.run.launch.processes = std::max<std::int64_t>(1, m_config.run.launch.processes);
    const auto parallelism = m_root.find("parallelism_config");
    if (parallelism && name != "FSDP" && !parallelism->json().empty()) {
        m_config.run.carriedAccelerate["parallelism_config"] = parallelism->json();
        note(NoteKind::Kept, parallelism->pointer(), "kept on export; a plan does not follow it");
    }
    return std::move(m_config);
}

} // namespace

ImportedConfig readAccelerateYaml(const std::string& text, const std::string& file, DeepSpeedContext context,
                                  const ConfigFileReader& readFile)
{
    const YamlDocument document = parseYaml(text, file);
    Findings findings(file);
    ImportedConfig config;
    if (JsonCursor(document.json, findings).expectObject()) {
        try {
            config = Reader(document.json, findings, context, readFile).read();
        } catch (const NumberTooLarge& error) {
            findings.add("/", error.what(), "smaller sizes");
        }
    }
    if (!findings.empty())
        throw withYamlPlaces(InputError(findings.all()), file, document);
    config.file = file;
    return config;
}

} // namespace shardwright
