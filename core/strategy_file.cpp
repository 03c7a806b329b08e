#include <cmath>

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_fields.hpp"
#include "core/scenario_file.hpp"

namespace shardwright {

namespace {

/// dtypes that parameters and gradients travel in.
const std::vector<DType> kWireTypes{DType::Fp32, DType::Bf16, DType::Fp16};

// One visit function per framework: keys are the framework's own option names (for FSDP without Accelerate's "fsdp_"),
// and reading and writing share the list.

template <typename Fields, typename Options> void visitFsdp1(Fields& fields, Options& options)
{
    fields.field("sharding_strategy", options.sharding);
    fields.field("shard_group", options.shardGroup);
    fields.field("offload_params", options.offloadParams);
    fields.field("backward_prefetch", options.backwardPrefetch);
    fields.field("forward_prefetch", options.forwardPrefetch);
    fields.field("limit_all_gathers", options.limitAllGathers);
    fields.field("auto_wrap_policy", options.wrap);
    fields.field("min_num_params", options.minNumParams);
    fields.field("use_orig_params", options.useOrigParams);
    fields.field("sync_module_states", options.syncModuleStates);
    fields.field("cpu_ram_efficient_loading", options.cpuRamEfficientLoading);
    fields.oneOf("param_dtype", options.paramDtype, kWireTypes);
    fields.oneOf("reduce_dtype", options.reduceDtype, kWireTypes);
    fields.oneOf("buffer_dtype", options.bufferDtype, kWireTypes);
    fields.field("no_sync", options.noSync);
    fields.field("upcast_trainable", options.upcastTrainable);
}

/// Without reshard_after_forward, which is a bool or a number of ranks.
template <typename Fields, typename Options> void visitFsdp2(Fields& fields, Options& options)
{
    fields.field("dp_replicate_size", options.replicate);
    fields.field("no_shard", options.noShard);
    fields.field("offload_params", options.offloadParams);
    fields.field("pin_memory", options.pinMemory);
    fields.field("forward_prefetch", options.forwardPrefetch);
    fields.field("auto_wrap_policy", options.wrap);
    fields.field("min_num_params", options.minNumParams);
    fields.field("separate_head_unit", options.separateHeadUnit);
    fields.field("cpu_ram_efficient_loading", options.cpuRamEfficientLoading);
    fields.oneOf("param_dtype", options.paramDtype, kWireTypes);
    fields.oneOf("reduce_dtype", options.reduceDtype, kWireTypes);
    fields.field("no_sync", options.noSync);
    fields.field("upcast_trainable", options.upcastTrainable);
    fields.field("keep_last_block", options.keepLastBlock);
    fields.field("checkpoint_children", options.checkpointChildren);
}

template <typename Fields, typename Options> void visitNative(Fields& fields, Options& options)
{
    fields.field("stage", options.stage, 0, 3);
    fields.field("prefetch", options.prefetch);
    fields.field("offload_optimizer", options.offloadOptimizer);
}

template <typename Fields, typename Options> void visitMegatron(Fields& fields, Options& options)
{
    fields.field("use_distributed_optimizer", options.distributedOptimizer);
    fields.field("overlap_grad_reduce", options.overlapGradReduce);
    fields.field("overlap_param_gather", options.overlapParamGather);
    fields.field("accumulate_allreduce_grads_in_fp32", options.fp32GradAccumulation);
    fields.field("ddp_bucket_size", options.bucketSize, 1, INT64_MAX);
    fields.field("tp_comm_overlap", options.tpCommOverlap);
    fields.field("use_precision_aware_optimizer", options.precisionAwareOptimizer);
    fields.oneOf("main_grads_dtype", options.mainGradsDtype, std::vector<DType>{DType::Fp32, DType::Bf16});
    fields.oneOf("exp_avg_dtype", options.expAvgDtype, std::vector<DType>{DType::Fp32, DType::Fp16, DType::Bf16});
    fields.oneOf("exp_avg_sq_dtype", options.expAvgSqDtype, std::vector<DType>{DType::Fp32, DType::Fp16, DType::Bf16});
}

constexpr std::int64_t kMostRanks = 1000000; // of one kind of parallelism
constexpr double kMostImbalance = 1000;

template <typename Fields, typename Options> void visitParallelism(Fields& fields, Options& parallelism)
{
    fields.field("tensor", parallelism.tensor, 1, kMostRanks);
    fields.field("sequence_parallel", parallelism.sequenceParallel);
    fields.field("pipeline", parallelism.pipeline, 1, kMostRanks);
    fields.field("schedule", parallelism.schedule);
    fields.field("virtual_stages", parallelism.virtualStages, 1, kMostRanks);
    fields.field("context", parallelism.context, 1, kMostRanks);
    fields.field("context_exchange", parallelism.exchange);
    fields.field("expert", parallelism.expert, 1, kMostRanks);
    fields.field("expert_tensor", parallelism.expertTensor, 0, kMostRanks);
    fields.field("expert_imbalance", parallelism.expertImbalance, 1.0, kMostImbalance);
}

constexpr double kMiB = 1024.0 * 1024;

DdpOptions readDdp(FieldReader& fields)
{
    DdpOptions options;
    double bucketMiB = options.bucketCap.asDouble() / kMiB;
    fields.field("bucket_cap_mb", bucketMiB, 1.0 / kMiB, 1e9);
    options.bucketCap = Bytes(std::llround(bucketMiB * kMiB));
    fields.field("gradient_as_bucket_view", options.gradientAsBucketView);
    return options;
}

Fsdp2Options readFsdp2(FieldReader& fields, const JsonCursor& cursor)
{
    Fsdp2Options options;
    fields.known("reshard_after_forward");
    if (const auto reshard = cursor.find("reshard_after_forward")) {
        if (reshard->json().is_boolean())
            options.reshardAfterForward = reshard->json().get<bool>();
        else if (reshard->json().is_number())
            options.reshardGroup = reshard->asInteger(1, INT64_MAX).value_or(0);
        else
            reshard->complain("is neither true, false nor a number",
                              "true, false or the number of ranks to reshard to");
    }
    visitFsdp2(fields, options);
    return options;
}

/// A strategy is complete in itself: what DeepSpeed's own files may leave to others has no place in it.
DeepSpeedOptions readDeepSpeed(FieldReader& fields, const JsonCursor& cursor)
{
    DeepSpeedOptions options = deepSpeedFileDefaults();
    for (const std::string& key : deepSpeedOptionKeys())
        fields.known(key);
    fields.field("zero3_init_flag", options.zero3Init);
    cursor.require("zero_optimization", "an object with \"stage\" and DeepSpeed's other keys");
    DeepSpeedExtras extras;
    readDeepSpeedOptions(cursor, options, extras);
    for (const std::string& place : extras.automatic)
        cursor.findings().add(place, "is \"auto\"", "a value: nothing fills it in here");
    for (const Rewrite& rewrite : extras.rewritten)
        cursor.findings().add(rewrite.place, rewrite.text, "the current form");
    for (const auto& [block, keys] : extras.carried.items())
        for (const auto& item : keys.items())
            cursor.findings().add(fmt::format("{}/{}/{}", cursor.pointer(), block, item.key()),
                                  "changes nothing that a plan shows", "to be left out here");
    if (const auto bf16 = cursor.find("bf16"); bf16 && bf16->has("enabled"))
        bf16->complain("\"enabled\" does not belong to a strategy", "\"precision\" of the scenario's training");
    return options;
}

struct OptionsWriter {
    FieldWriter& fields;

    void operator()(const DdpOptions& options) const
    {
        fields.field("bucket_cap_mb", options.bucketCap.asDouble() / kMiB);
        fields.field("gradient_as_bucket_view", options.gradientAsBucketView);
    }
    void operator()(const Fsdp1Options& options) const { visitFsdp1(fields, options); }
    void operator()(const Fsdp2Options& options) const
    {
        if (options.reshardGroup > 0)
            fields.field("reshard_after_forward", options.reshardGroup);
        else
            fields.field("reshard_after_forward", options.reshardAfterForward);
        visitFsdp2(fields, options);
    }
    void operator()(const DeepSpeedOptions& options) const
    {
        Json json = deepSpeedOptionsJson(options);
        if (!options.overlapComm) // written resolved there; here absent stays absent
            json["zero_optimization"].erase("overlap_comm");
        for (const auto& item : json.items())
            fields.field(item.key(), item.value());
        fields.field("zero3_init_flag", options.zero3Init);
    }
    void operator()(const NativeOptions& options) const { visitNative(fields, options); }
    void operator()(const MegatronOptions& options) const { visitMegatron(fields, options); }
};

Strategy predefined(const JsonCursor& cursor, const std::string& name, int gpusPerNode)
{
    if (auto strategy = strategyByName(name, gpusPerNode))
        return *strategy;
    const std::string nearest = nearestWord(name, strategyNames());
    cursor.complain("\"" + name.substr(0, 60) + "\" is not a predefined strategy",
                    nearest.empty() ? "a name that `shardplan strategies` lists, or an object with \"name\" and "
                                      "\"framework\""
                                    : fmt::format("\"{}\" perhaps", nearest));
    return {name, DdpOptions{}};
}

} // namespace

Strategy strategyFromJson(const JsonCursor& cursor, int gpusPerNode)
{
    if (cursor.json().is_string())
        return predefined(cursor, cursor.json().get<std::string>(), gpusPerNode);
    Strategy strategy{"", DdpOptions{}};
    if (!cursor.json().is_object()) {
        cursor.complain("is neither a name nor an object",
                        "a text as \"fsdp2-full-shard\", or an object with \"name\", "
                        "\"framework\" and its options");
        return strategy;
    }
    FieldReader fields(cursor);
    if (cursor.require("name", "a name of your own for this combination"))
        cursor.read("name", strategy.name);
    if (cursor.has("name") && cursor.json().at("name").is_string() && strategy.name.empty())
        cursor.complain("\"name\" is empty", "a name of your own for this combination");
    constexpr const char* kFrameworks = "ddp, fsdp1, fsdp2, deepspeed, megatron or native";
    std::string framework;
    fields.known("name");
    fields.known("framework");
    const auto member = cursor.require("framework", kFrameworks);
    if (member)
        framework = member->asString().value_or("");
    if (framework == "ddp") {
        strategy.options = readDdp(fields);
    } else if (framework == "fsdp1") {
        Fsdp1Options options;
        visitFsdp1(fields, options);
        strategy.options = options;
    } else if (framework == "fsdp2") {
        strategy.options = readFsdp2(fields, cursor);
    } else if (framework == "deepspeed") {
        strategy.options = readDeepSpeed(fields, cursor);
    } else if (framework == "native") {
        NativeOptions options;
        visitNative(fields, options);
        strategy.options = options;
    } else if (framework == "megatron") {
        MegatronOptions options;
        visitMegatron(fields, options);
        strategy.options = options;
    } else {
        if (member && member->json().is_string())
            member->complain("\"" + framework.substr(0, 60) + "\" is not a framework", kFrameworks);
        return strategy; // which keys are known depends on the framework
    }
    fields.object("parallelism", [&](FieldReader& inner) { visitParallelism(inner, strategy.parallelism); });
    fields.finish();
    return strategy;
}

Json toJson(const Strategy& strategy)
{
    FieldWriter fields;
    fields.field("name", strategy.name);
    fields.field("framework", std::string(frameworkOf(strategy)));
    std::visit(OptionsWriter{fields}, strategy.options);
    if (!(strategy.parallelism == Parallelism{}))
        fields.object("parallelism", [&](FieldWriter& inner) { visitParallelism(inner, strategy.parallelism); });
    return fields.take();
}

} // namespace shardwright
