#include "core/deepspeed_options.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

enum class Stages : std::uint8_t { All, Three };

template <typename T, typename Owner = DeepSpeedOptions> struct Key {
    std::string_view name; // as written; stage-3 keys are also taken without "stage3_" (pydantic populate_by_name)
    T Owner::*field;
    Stages stages = Stages::All;
    std::int64_t minimum = 0; // of integers
};

using Options = DeepSpeedOptions;

constexpr std::array kSizes{
    Key<std::int64_t>{"reduce_bucket_size", &Options::reduceBucketSize, Stages::All, 1},
    Key<std::int64_t>{"allgather_bucket_size", &Options::allgatherBucketSize},
    Key<std::int64_t>{"sub_group_size", &Options::subGroupSize, Stages::Three},
    Key<std::int64_t>{"stage3_prefetch_bucket_size", &Options::prefetchBucketSize, Stages::Three},
    Key<std::int64_t>{"stage3_param_persistence_threshold", &Options::paramPersistenceThreshold, Stages::Three},
    Key<std::int64_t>{"stage3_model_persistence_threshold", &Options::modelPersistenceThreshold, Stages::Three},
    Key<std::int64_t>{"stage3_max_live_parameters", &Options::maxLiveParameters, Stages::Three},
    Key<std::int64_t>{"stage3_max_reuse_distance", &Options::maxReuseDistance, Stages::Three},
    Key<std::int64_t>{"zero_hpz_partition_size", &Options::hpzPartitionSize, Stages::Three},
};

constexpr std::array kSwitches{
    Key<bool>{"contiguous_gradients", &Options::contiguousGradients},
    Key<bool>{"reduce_scatter", &Options::reduceScatter},
    Key<bool>{"use_multi_rank_bucket_allreduce", &Options::useMultiRankBucketAllreduce},
    Key<bool>{"round_robin_gradients", &Options::roundRobinGradients},
    Key<bool>{"stage3_gather_16bit_weights_on_model_save", &Options::gather16bitWeightsOnModelSave, Stages::Three},
    Key<bool>{"memory_efficient_linear", &Options::memoryEfficientLinear, Stages::Three},
    Key<bool>{"zero_quantized_weights", &Options::quantizedWeights, Stages::Three},
    Key<bool>{"zero_quantized_gradients", &Options::quantizedGradients, Stages::Three},
};

// Keys that DeepSpeed knows and the options have no field for. They are kept as they are.
const std::vector<std::string> kCarriedKeys{"allgather_partitions",
                                            "compute_grad_norm",
                                            "load_from_fp32_weights",
                                            "elastic_checkpoint",
                                            "zenflow",
                                            "ignore_unused_parameters",
                                            "parameter_alignment",
                                            "stage3_module_granularity_threshold",
                                            "stage3_use_all_reduce_for_fetch_params",
                                            "stage3_allgather_sequential",
                                            "zero_quantized_nontrainable_weights",
                                            "zeropp_loco_param",
                                            "pipeline_loading_checkpoint",
                                            "override_module_apply",
                                            "log_trace_cache_warnings",
                                            "enable_sanity_checks",
                                            "save_muon_momentum_buffer_in_memory",
                                            "leaf_module"};
const std::vector<std::string> kCarriedOffloadKeys{"fast_init", "super_offload", "cpuadam_cores_perc"};
const std::vector<std::string> kCarriedBf16Keys{"immediate_grad_update", "check_grad_overflow"};

constexpr std::string_view kStage3 = "stage3_";

bool isAutomatic(const JsonCursor& value)
{
    return value.json().is_string() && value.json().get<std::string>() == "auto";
}

/// One object of the file under reading: looks keys up, notes "auto", remembers which keys it knows.
class Block {
public:
    Block(const JsonCursor& object, DeepSpeedExtras& extras) : m_object(object), m_extras(extras) {}

    std::optional<JsonCursor> find(std::string_view name)
    {
        const std::string key(name);
        m_known.push_back(key);
        auto value = m_object.find(key);
        if (key.starts_with(kStage3)) {
            const std::string alias = key.substr(kStage3.size());
            m_known.push_back(alias);
            const auto other = m_object.find(alias);
            if (value && other)
                other->complain("says the same as \"" + key + "\"", "one of the two");
            if (!value)
                value = other;
        }
        if (value && isAutomatic(*value)) {
            m_extras.automatic.push_back(value->pointer());
            return std::nullopt;
        }
        return value;
    }

    void read(std::string_view name, std::int64_t& target, std::int64_t minimum = 0, std::int64_t maximum = kNoLimit)
    {
        if (const auto member = find(name))
            if (const auto value = member->asInteger(minimum, maximum))
                target = *value;
    }
    void read(std::string_view name, bool& target)
    {
        if (const auto member = find(name))
            if (const auto value = member->asBool())
                target = *value;
    }

    void carry(const std::vector<std::string>& names, Json& into)
    {
        for (const std::string& name : names)
            if (const auto value = find(name))
                into[name] = value->json();
    }

    /// Of blocks whose other keys DeepSpeed neither reads nor refuses.
    void carryUnknownKeys(Json& into)
    {
        for (const auto& item : m_object.json().items()) {
            if (std::find(m_known.begin(), m_known.end(), item.key()) != m_known.end())
                continue;
            m_extras.ignored.push_back(m_object.pointer() + "/" + item.key());
            into[item.key()] = item.value();
        }
    }

    void rejectUnknownKeys() const { m_object.rejectUnknownKeys(m_known); }
    const JsonCursor& object() const { return m_object; }

private:
    JsonCursor m_object;
    DeepSpeedExtras& m_extras;
    std::vector<std::string> m_known;
};

void readDevice(Block& block, OffloadDevice& device, std::string& nvmePath)
{
    if (const auto member = block.find("device"))
        if (const auto value = member->asEnum<OffloadDevice>())
            device = *value;
    if (const auto path = block.find("nvme_path")) {
        if (const auto text = path->asString())
            nvmePath = *text;
    } else if (device == OffloadDevice::Nvme) {
        block.object().complain("offloads to nvme without \"nvme_path\"", "the folder of the NVMe device");
    }
}

void readOffloadOptimizer(const JsonCursor& object, Options& options, DeepSpeedExtras& extras, Json& carried)
{
    if (!object.expectObject())
        return;
    Block block(object, extras);
    readDevice(block, options.offloadOptimizer, options.nvmePath);
    block.read("buffer_count", options.optimizerBufferCount);
    block.read("pin_memory", options.pinMemory);
    block.read("pipeline_read", options.pipelineRead);
    block.read("pipeline_write", options.pipelineWrite);
    if (const auto ratio = block.find("ratio"))
        if (const auto value = ratio->asNumber(0, 1))
            options.offloadRatio = *value;
    Json kept = Json::object();
    block.carry(kCarriedOffloadKeys, kept);
    if (!kept.empty())
        carried["offload_optimizer"] = kept;
    block.rejectUnknownKeys();
}

void readOffloadParam(const JsonCursor& object, Options& options, DeepSpeedExtras& extras)
{
    if (!object.expectObject())
        return;
    Block block(object, extras);
    readDevice(block, options.offloadParam, options.paramNvmePath);
    block.read("buffer_count", options.paramBufferCount);
    block.read("buffer_size", options.paramBufferSize);
    block.read("max_in_cpu", options.maxInCpu);
    block.read("pin_memory", options.paramPinMemory);
    block.rejectUnknownKeys();
}

void readDeprecated(Block& block, Options& options, DeepSpeedExtras& extras)
{
    const auto toCpu = [&](std::string_view old, const char* replacement, OffloadDevice& device) {
        bool on = false;
        const auto member = block.find(old);
        if (!member)
            return;
        block.read(old, on);
        if (block.object().has(replacement))
            member->complain(fmt::format("is the deprecated form of \"{}\", which is given too", replacement),
                             "one of the two");
        else if (on)
            device = OffloadDevice::Cpu;
        extras.rewritten.push_back({member->pointer(), fmt::format("deprecated, became \"{}\"{}", replacement,
                                                                   on ? ": {\"device\": \"cpu\"}" : " left out")});
    };
    toCpu("cpu_offload", "offload_optimizer", options.offloadOptimizer);
    toCpu("cpu_offload_param", "offload_param", options.offloadParam);
    if (const auto member = block.find("cpu_offload_use_pin_memory"))
        extras.rewritten.push_back(
            {member->pointer(), "deprecated and read by nothing; pin_memory of the offload blocks decides"});
    constexpr std::string_view kOldGather = "stage3_gather_fp16_weights_on_model_save";
    if (const auto member = block.find(kOldGather)) {
        block.read(kOldGather, options.gather16bitWeightsOnModelSave);
        extras.rewritten.push_back(
            {member->pointer(), "deprecated, became \"stage3_gather_16bit_weights_on_model_save\""});
    }
}

void readMics(Block& block, Options& options)
{
    if (const auto member = block.find("mics_shard_size"))
        if (const auto value = member->asInteger(-1, kNoLimit))
            options.micsShardSize = *value > 0 ? *value : 0; // DeepSpeed: off is -1
    block.read("mics_hierarchical_params_gather", options.micsHierarchicalGather);
}

void readZeroOptimization(const JsonCursor& zero, Options& options, DeepSpeedExtras& extras)
{
    if (zero.json().is_boolean()) {
        options.stage = zero.json().get<bool>() ? 1 : 0;
        extras.rewritten.push_back(
            {zero.pointer(), fmt::format("the old form true/false, became \"stage\": {}", options.stage)});
        return;
    }
    if (!zero.expectObject())
        return;
    Block block(zero, extras);
    if (const auto member = block.find("stage"))
        if (const auto value = member->asInteger(0, 3))
            options.stage = static_cast<int>(*value);
    for (const auto& key : kSizes)
        block.read(key.name, options.*key.field, key.minimum);
    for (const auto& key : kSwitches)
        block.read(key.name, options.*key.field);
    if (const auto member = block.find("overlap_comm"))
        if (const auto value = member->asBool())
            options.overlapComm = *value;
    if (const auto member = block.find("legacy_stage1"))
        if (const auto value = member->asBool(); value && *value)
            member->complain("is true: DeepSpeed refuses it since 0.5.9", "false");
    readMics(block, options);

    Json carried = Json::object();
    block.carry(kCarriedKeys, carried);
    readDeprecated(block, options, extras);
    if (const auto member = block.find("offload_optimizer"))
        readOffloadOptimizer(*member, options, extras, carried);
    if (const auto member = block.find("offload_param"))
        readOffloadParam(*member, options, extras);
    block.rejectUnknownKeys();
    if (!carried.empty())
        extras.carried["zero_optimization"] = carried;
}

void readAio(const JsonCursor& object, AioOptions& aio, DeepSpeedExtras& extras)
{
    if (!object.expectObject())
        return;
    Block block(object, extras);
    block.read("block_size", aio.blockSize, 1);
    block.read("queue_depth", aio.queueDepth, 1);
    block.read("intra_op_parallelism", aio.threads, 1);
    block.read("single_submit", aio.singleSubmit);
    block.read("overlap_events", aio.overlapEvents);
    Json carried = Json::object();
    block.carry({"use_gds"}, carried);
    block.carryUnknownKeys(carried);
    if (!carried.empty())
        extras.carried["aio"] = carried;
}

// DtypeEnum of runtime/config.py takes torch's long names beside its own.
std::optional<DType> floatingDType(const JsonCursor& value)
{
    const auto text = value.asString();
    if (!text)
        return std::nullopt;
    for (const auto& [dtype, longName] :
         {std::pair{DType::Fp32, "float32"}, std::pair{DType::Fp16, "float16"}, std::pair{DType::Bf16, "bfloat16"}})
        if (*text == nameOf(dtype) || *text == longName || *text == std::string("torch.") + longName)
            return dtype;
    value.complain("\"" + *text + "\" is not known here", "fp32, fp16 or bf16");
    return std::nullopt;
}

void readDataTypes(const JsonCursor& object, Options& options, DeepSpeedExtras& extras)
{
    if (!object.expectObject())
        return;
    Block block(object, extras);
    if (const auto member = block.find("grad_accum_dtype"))
        options.gradAccumDtype = floatingDType(*member);
    Json carried = Json::object();
    block.carry({"param_dtype", "buffer_dtype"}, carried);
    block.carryUnknownKeys(carried);
    if (!carried.empty())
        extras.carried["data_types"] = carried;
}

void readBf16Storage(const JsonCursor& object, Options& options, DeepSpeedExtras& extras)
{
    if (!object.expectObject())
        return;
    Block block(object, extras);
    block.read("bf16_master_weights_and_grads", options.bf16MasterWeightsAndGrads);
    block.read("bf16_optimizer_states", options.bf16OptimizerStates);
    Json carried = Json::object();
    block.carry(kCarriedBf16Keys, carried);
    if (!carried.empty())
        extras.carried["bf16"] = carried;
    object.rejectUnknownKeys({"enabled", "bf16_master_weights_and_grads", "bf16_optimizer_states", kCarriedBf16Keys[0],
                              kCarriedBf16Keys[1]});
}

bool nvme(const Options& options)
{
    return options.offloadOptimizer == OffloadDevice::Nvme || options.offloadParam == OffloadDevice::Nvme;
}

Json offloadOptimizerJson(const Options& options)
{
    Json json = {{"device", nameOf(options.offloadOptimizer)},
                 {"pin_memory", options.pinMemory},
                 {"ratio", options.offloadRatio}};
    if (options.offloadOptimizer == OffloadDevice::Nvme || options.nvmePath != Options{}.nvmePath)
        json["nvme_path"] = options.nvmePath;
    json["buffer_count"] = options.optimizerBufferCount;
    json["pipeline_read"] = options.pipelineRead;
    json["pipeline_write"] = options.pipelineWrite;
    return json;
}

Json offloadParamJson(const Options& options)
{
    Json json = {{"device", nameOf(options.offloadParam)}, {"pin_memory", options.paramPinMemory}};
    if (options.offloadParam == OffloadDevice::Nvme || options.paramNvmePath != Options{}.paramNvmePath)
        json["nvme_path"] = options.paramNvmePath;
    json["buffer_count"] = options.paramBufferCount;
    json["buffer_size"] = options.paramBufferSize;
    json["max_in_cpu"] = options.maxInCpu;
    return json;
}

Json zeroOptimizationJson(const Options& options)
{
    const Options defaults = deepSpeedFileDefaults();
    Json json = {{"stage", options.stage}, {"overlap_comm", overlapsCommunication(options)}};
    const auto acts = [&](const auto& key) {
        return key.stages == Stages::All || options.stage == 3 || options.*key.field != defaults.*key.field;
    };
    for (const auto& key : kSwitches)
        if (acts(key))
            json[std::string(key.name)] = options.*key.field;
    for (const auto& key : kSizes)
        if (acts(key))
            json[std::string(key.name)] = options.*key.field;
    // Written only when on: 0.19.7 and later refuse the keys whatever they say.
    if (options.micsShardSize > 0)
        json["mics_shard_size"] = options.micsShardSize;
    if (options.micsHierarchicalGather)
        json["mics_hierarchical_params_gather"] = true;

    const Json optimizer = offloadOptimizerJson(options);
    if (optimizer != offloadOptimizerJson(defaults))
        json["offload_optimizer"] = optimizer;
    const Json param = offloadParamJson(options);
    if (param != offloadParamJson(defaults))
        json["offload_param"] = param;
    return json;
}

Json aioJson(const AioOptions& aio)
{
    return {{"block_size", aio.blockSize},
            {"queue_depth", aio.queueDepth},
            {"intra_op_parallelism", aio.threads},
            {"single_submit", aio.singleSubmit},
            {"overlap_events", aio.overlapEvents}};
}

} // namespace

DeepSpeedOptions deepSpeedFileDefaults()
{
    DeepSpeedOptions options;
    options.stage = 0;
    options.gather16bitWeightsOnModelSave = false;
    return options;
}

const std::vector<std::string>& deepSpeedOptionKeys()
{
    static const std::vector<std::string> keys{"zero_optimization", "aio", "data_types", "communication_data_type",
                                               "bf16"};
    return keys;
}

void readDeepSpeedOptions(const JsonCursor& object, DeepSpeedOptions& options, DeepSpeedExtras& extras)
{
    if (const auto member = object.find("zero_optimization"))
        readZeroOptimization(*member, options, extras);
    if (const auto member = object.find("aio"))
        readAio(*member, options.aio, extras);
    if (const auto member = object.find("data_types"))
        readDataTypes(*member, options, extras);
    if (const auto member = object.find("communication_data_type"))
        options.communicationDtype = floatingDType(*member);
    if (const auto member = object.find("bf16"))
        readBf16Storage(*member, options, extras);
}

Json deepSpeedOptionsJson(const DeepSpeedOptions& options)
{
    Json json = {{"zero_optimization", zeroOptimizationJson(options)}};
    if (nvme(options) || options.aio != AioOptions{})
        json["aio"] = aioJson(options.aio);
    if (options.gradAccumDtype)
        json["data_types"]["grad_accum_dtype"] = nameOf(*options.gradAccumDtype);
    if (options.communicationDtype)
        json["communication_data_type"] = nameOf(*options.communicationDtype);
    if (options.bf16MasterWeightsAndGrads)
        json["bf16"]["bf16_master_weights_and_grads"] = true;
    if (options.bf16OptimizerStates)
        json["bf16"]["bf16_optimizer_states"] = true;
    return json;
}

bool overlapsCommunication(const DeepSpeedOptions& options)
{
    return options.overlapComm.value_or(options.stage == 3);
}

} // namespace shardwright
