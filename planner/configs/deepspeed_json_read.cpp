#include <algorithm>

#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/deepspeed_json.hpp"
#include "planner/configs/deepspeed_keys.hpp"
#include "planner/configs/hjson.hpp"

namespace shardwright {

namespace {

const std::vector<std::string> kFp16Keys{"enabled",
                                         "auto_cast",
                                         "loss_scale",
                                         "initial_scale_power",
                                         "loss_scale_window",
                                         "hysteresis",
                                         "consecutive_hysteresis",
                                         "min_loss_scale",
                                         "fp16_master_weights_and_grads"};

constexpr std::int64_t kLargestCount = std::int64_t{1} << 40; // of sequences, steps and ranks

bool isAutomatic(const Json& value)
{
    return value.is_string() && value.get<std::string>() == "auto";
}

/// Removes every member that is "auto"; true when there was one.
bool dropAutomatic(Json& value)
{
    bool found = false;
    if (!value.is_object())
        return false;
    for (auto it = value.begin(); it != value.end();) {
        if (isAutomatic(it.value())) {
            it = value.erase(it);
            found = true;
        } else {
            found = dropAutomatic(it.value()) || found;
            ++it;
        }
    }
    return found;
}

bool holdsAutomatic(Json value)
{
    return dropAutomatic(value);
}

struct BatchSizes {
    std::optional<std::int64_t> train, micro, accumulation;
    bool automatic = false;
};

class Reader {
public:
    Reader(const Json& json, Findings& findings, const DeepSpeedContext& context)
        : m_root(json, findings), m_context(context)
    {
    }

    ImportedConfig read()
    {
        readOptions();
        readPrecision();
        readOptimizer();
        readActivationCheckpointing();
        readGradients();
        readBatch();
        readRest();
        for (const SettingProblem& problem : findDeepSpeedProblems(m_options, m_config.run.training.optimizer))
            m_root.findings().add(problem.place, problem.what, problem.expected);
        m_config.run.strategy.name = describeOptions(m_options);
        m_config.run.strategy.options = m_options;
        m_config.run.carriedDeepSpeed = m_carried;
        return std::move(m_config);
    }

private:
    void note(NoteKind kind, std::string setting, std::string text)
    {
        m_config.notes.push_back({kind, std::move(setting), std::move(text)});
    }

    /// The member, unless it is absent or "auto"; "auto" is noted with what fills it.
    std::optional<JsonCursor> findUnlessAutomatic(const std::string& key, const std::string& filledFrom)
    {
        auto member = m_root.find(key);
        if (!member || !isAutomatic(member->json()))
            return member;
        note(NoteKind::Automatic, member->pointer(),
             "\"auto\": Hugging Face fills it from " + filledFrom + "; DeepSpeed alone cannot");
        return std::nullopt;
    }

    void readOptions();
    void fillAutomaticSize(const std::string& pointer);
    void readPrecision();
    std::optional<bool> readEnabled(const std::string& block);
    void readOptimizer();
    void readActivationCheckpointing();
    void readGradients();
    void readBatch();
    void checkBatch(const BatchSizes& sizes);
    void readRest();
    void keep(const std::string& key, const Json& value);

    JsonCursor m_root;
    DeepSpeedContext m_context;
    DeepSpeedOptions m_options = deepSpeedFileDefaults();
    Json m_carried = Json::object();
    ImportedConfig m_config;
};

void Reader::readOptions()
{
    if (!m_root.has("zero_optimization") && m_context.underAccelerate)
        m_root.complain("\"zero_optimization\" is missing, and Accelerate refuses the file without it",
                        "\"zero_optimization\": {\"stage\": ...}");
    else if (!m_root.has("zero_optimization"))
        note(NoteKind::Information, "/zero_optimization", "absent: ZeRO is off (stage 0)");
    DeepSpeedExtras extras;
    readDeepSpeedOptions(m_root, m_options, extras);
    const auto zero = m_root.find("zero_optimization");
    if (zero && zero->json().is_boolean())
        m_root.read("allgather_size", m_options.allgatherBucketSize, 0);
    m_carried = extras.carried;
    for (const Rewrite& rewrite : extras.rewritten)
        note(NoteKind::Rewritten, rewrite.place, rewrite.text);
    for (const std::string& pointer : extras.ignored)
        note(NoteKind::Ignored, pointer, "DeepSpeed 0.19.6 reads no such key here; it is kept");
    for (const std::string& pointer : extras.automatic)
        fillAutomaticSize(pointer);
    if (m_carried.contains("zero_optimization"))
        for (const auto& item : m_carried["zero_optimization"].items())
            note(NoteKind::Kept, "/zero_optimization/" + item.key(), "kept on export; a plan does not follow it");
    if (m_options.micsShardSize > 0)
        note(NoteKind::Information, "/zero_optimization/mics_shard_size",
             "DeepSpeed 0.19.7 removed MiCS and refuses this key");
}

// transformers/integrations/deepspeed.py, trainer_config_finalize: sizes that follow the hidden size H.
void Reader::fillAutomaticSize(const std::string& pointer)
{
    const std::string key = pointer.substr(pointer.rfind('/') + 1);
    const auto fill = [&](std::int64_t& target, std::int64_t (*rule)(std::int64_t), const char* formula) {
        if (m_context.hiddenSize) {
            target = rule(*m_context.hiddenSize);
            note(NoteKind::Automatic, pointer,
                 fmt::format("\"auto\": {} = {} as Hugging Face fills it (hidden size {})", formula, target,
                             *m_context.hiddenSize));
        } else {
            note(
                NoteKind::Automatic, pointer,
                fmt::format("\"auto\": Hugging Face fills {} from the model's hidden size; without a model DeepSpeed's "
                            "default {} is taken",
                            formula, target));
        }
    };
    if (key == "reduce_bucket_size")
        fill(
            m_options.reduceBucketSize, [](std::int64_t h) { return checkedMultiply(h, h); }, "H*H");
    else if (key.ends_with("prefetch_bucket_size"))
        fill(
            m_options.prefetchBucketSize,
            [](std::int64_t h) {
                checkedMultiply(h, h);
                return static_cast<std::int64_t>(0.9 * static_cast<double>(h) * static_cast<double>(h));
            },
            "int(0.9*H*H)");
    else if (key.ends_with("param_persistence_threshold"))
        fill(
            m_options.paramPersistenceThreshold, [](std::int64_t h) { return checkedMultiply(10, h); }, "10*H");
    else
        note(NoteKind::Automatic, pointer, "\"auto\": DeepSpeed drops it, so its default holds");
}

std::optional<bool> Reader::readEnabled(const std::string& block)
{
    const auto object = m_root.find(block);
    if (!object)
        return false;
    const auto enabled = object->find("enabled");
    if (!enabled)
        return false;
    if (isAutomatic(enabled->json())) {
        note(NoteKind::Automatic, enabled->pointer(),
             "\"auto\": Hugging Face fills it from the script's precision; the training settings decide here");
        return std::nullopt;
    }
    return enabled->asBool();
}

void Reader::readPrecision()
{
    const std::optional<bool> bf16 = readEnabled("bf16");
    const std::optional<bool> fp16 = readEnabled("fp16");
    // runtime/config.py: "bfloat16 and fp16 modes cannot be simultaneously enabled"
    if (bf16.value_or(false) && fp16.value_or(false))
        m_root.findings().add("/fp16/enabled", "is true beside bf16", "one of the two");
    if (bf16.value_or(false))
        m_config.run.training.mixedPrecision = MixedPrecisionMode::Bf16;
    else if (fp16.value_or(false))
        m_config.run.training.mixedPrecision = MixedPrecisionMode::Fp16;
    else if (bf16 && fp16)
        m_config.run.training.mixedPrecision = MixedPrecisionMode::No;

    if (const auto object = m_root.find("fp16"); object && object->expectObject()) {
        object->rejectUnknownKeys(kFp16Keys);
        Json kept = object->json();
        kept.erase("enabled");
        dropAutomatic(kept);
        if (!kept.empty())
            m_carried["fp16"] = kept;
        if (kept.value("fp16_master_weights_and_grads", Json(false)) == Json(true))
            note(NoteKind::Kept, "/fp16/fp16_master_weights_and_grads", "kept on export; a plan does not follow it");
    }
    const auto amp = m_root.find("amp");
    if (amp && amp->json().is_object() && amp->json().value("enabled", Json(false)) == Json(true))
        amp->complain("Apex AMP is enabled", "bf16 or fp16: DeepSpeed refuses AMP with ZeRO, and 0.19.8 removed it");
}

struct OptimizerType {
    std::string_view name; // lower case, as runtime/config.py compares DeepSpeed's own names
    Optimizer optimizer;
};
constexpr std::array kOptimizerTypes{
    OptimizerType{"adamw", Optimizer::AdamW},
    OptimizerType{"adam", Optimizer::AdamW}, // adam_w_mode decides
    OptimizerType{"sgd", Optimizer::Sgd},
    OptimizerType{"adafactor", Optimizer::Adafactor},
    OptimizerType{"lion", Optimizer::Lion},
    OptimizerType{"onebitadam", Optimizer::OneBitAdam},
    OptimizerType{"zerooneadam", Optimizer::ZeroOneAdam},
    OptimizerType{"onebitlamb", Optimizer::OneBitLamb},
};

void Reader::readOptimizer()
{
    const auto block = m_root.find("optimizer");
    if (!block || !block->expectObject())
        return;
    const Json kept = block->json();
    if (holdsAutomatic(kept))
        note(NoteKind::Automatic, "/optimizer/params",
             "values that are \"auto\": Hugging Face fills them from TrainingArguments; DeepSpeed alone cannot");
    const auto type = block->require("type", "the optimizer's name, such as \"AdamW\"");
    const auto name = type ? type->asString() : std::nullopt;
    if (!name)
        return;
    const Json params = kept.contains("params") && kept["params"].is_object() ? kept["params"] : Json::object();
    // runtime/engine.py _configure_basic_optimizer raises on it
    if (params.contains("max_grad_norm"))
        m_root.findings().add("/optimizer/params/max_grad_norm", "is not an optimizer parameter for DeepSpeed",
                              "\"gradient_clipping\" at the top level");
    std::string lower = *name;
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (const OptimizerType& known : kOptimizerTypes)
        if (lower == known.name)
            m_config.run.training.optimizer = known.optimizer;
    auto& optimizer = m_config.run.training.optimizer;
    if (!optimizer) {
        note(NoteKind::Kept, "/optimizer/type",
             fmt::format("\"{}\" is kept on export; plans do not know it, so the training settings decide", *name));
        m_carried["optimizer"] = kept;
        return;
    }
    const bool adam = lower == "adam" || lower == "adamw";
    if (adam && params.value("adam_w_mode", Json(true)) == Json(false))
        optimizer = Optimizer::Adam;
    const Json momentum = params.value("momentum", Json(0));
    if (lower == "sgd" && momentum.is_number() && momentum.get<double>() > 0)
        optimizer = Optimizer::SgdMomentum;
    if (!params.empty())
        m_carried["optimizer"]["params"] = params;
}

void Reader::readActivationCheckpointing()
{
    const auto block = m_root.find("activation_checkpointing");
    if (!block || !block->expectObject())
        return;
    bool partition = false;
    bool cpu = false;
    block->read("partition_activations", partition);
    block->read("cpu_checkpointing", cpu);
    if (cpu)
        m_config.run.training.checkpointing = Checkpointing::Cpu;
    else if (partition)
        m_config.run.training.checkpointing = Checkpointing::Partitioned;
    Json kept = block->json();
    kept.erase("cpu_checkpointing");
    if (!cpu)
        kept.erase("partition_activations");
    dropAutomatic(kept);
    if (!kept.empty())
        m_carried["activation_checkpointing"] = kept;
    note(NoteKind::Information, block->pointer(),
         "acts only where the model calls deepspeed.checkpointing; Hugging Face's gradient_checkpointing does not");
}

void Reader::readGradients()
{
    auto& clipping = m_config.run.training.gradientClipping;
    if (const auto member = findUnlessAutomatic("gradient_clipping", "max_grad_norm")) {
        clipping = member->asNumber(0, std::numeric_limits<double>::max());
    } else if (!m_root.has("gradient_clipping")) {
        clipping = 1.0; // runtime/constants.py GRADIENT_CLIPPING_DEFAULT
        note(NoteKind::Information, "/gradient_clipping", "absent: 1.0 since DeepSpeed 0.19.3, off before");
    }
    // runtime/zero/stage_1_and_2.py (where gradients are partitioned: stage 2) and stage3.py assert both under
    // reduce_scatter
    const bool scattered = m_options.stage >= 2 && m_options.reduceScatter;
    double factor = 1.0;
    bool prescale = false;
    m_root.read("gradient_predivide_factor", factor, 0, std::numeric_limits<double>::max());
    m_root.read("prescale_gradients", prescale);
    if (scattered && factor != 1.0)
        m_root.findings().add("/gradient_predivide_factor",
                              fmt::format("is {} with ZeRO-2 or 3 and reduce_scatter", factor),
                              "1.0, or reduce_scatter false");
    if (scattered && prescale)
        m_root.findings().add("/prescale_gradients", "is true with ZeRO-2 or 3 and reduce_scatter",
                              "false, or reduce_scatter false");
    for (const char* key : {"gradient_predivide_factor", "prescale_gradients"})
        if (const auto member = m_root.find(key))
            m_carried[key] = member->json();
}

void Reader::readBatch()
{
    BatchSizes sizes;
    const auto read = [&](const char* key, const char* filledFrom) {
        const auto member = findUnlessAutomatic(key, filledFrom);
        sizes.automatic = sizes.automatic || (!member && m_root.has(key));
        return member ? member->asInteger(1, kLargestCount) : std::nullopt;
    };
    sizes.train = read("train_batch_size", "the other two and the number of GPUs");
    sizes.micro = read("train_micro_batch_size_per_gpu", "per_device_train_batch_size or the data loader");
    sizes.accumulation = read("gradient_accumulation_steps", "gradient_accumulation_steps of the script");
    std::int64_t sequenceParallel = 1;
    m_root.read("sequence_parallel_size", sequenceParallel, 1, kLargestCount);
    if (sequenceParallel > 1) {
        m_config.run.strategy.parallelism.context = sequenceParallel;
        m_config.run.strategy.parallelism.exchange = ContextExchange::Ulysses;
        note(NoteKind::Information, "/sequence_parallel_size",
             "acts where the model's attention exchanges heads (deepspeed.sequence.layer.DistributedAttention, or "
             "UlyssesSPAttentionHF for Hugging Face's)");
    }
    if (m_context.world) {
        if (*m_context.world % sequenceParallel != 0)
            m_root.findings().add("/sequence_parallel_size",
                                  fmt::format("is {} on {} GPUs", sequenceParallel, *m_context.world),
                                  "a divisor of the number of GPUs");
        else
            m_context.world = *m_context.world / sequenceParallel;
    }
    checkBatch(sizes);
}

// runtime/config.py _set_batch_related_parameters and _batch_assertion.
void Reader::checkBatch(const BatchSizes& sizes)
{
    auto& settings = m_config.run.training;
    settings.microBatch = sizes.micro;
    settings.gradientAccumulation = sizes.accumulation;
    const bool saidTrain = sizes.train.has_value();
    if (!saidTrain && !sizes.micro) {
        const bool broken = std::any_of(m_root.findings().all().begin(), m_root.findings().all().end(),
                                        [](const Finding& finding) { return finding.place.find("batch") == 1; });
        if (!sizes.automatic && !broken)
            m_root.findings().add("/train_micro_batch_size_per_gpu", "neither this nor train_batch_size is given",
                                  "at least one of the two");
        return;
    }
    // accelerate/utils/dataclasses.py, DeepSpeedPlugin: adds 1 before DeepSpeed could divide
    const bool mustBeOne = m_context.underAccelerate && !m_root.has("gradient_accumulation_steps");
    if (mustBeOne || (!sizes.accumulation && !sizes.automatic && !(saidTrain && sizes.micro)))
        settings.gradientAccumulation = 1;
    if (!saidTrain)
        return;
    const std::int64_t known =
        checkedMultiply(settings.microBatch.value_or(1), settings.gradientAccumulation.value_or(1));
    const std::int64_t divisor = checkedMultiply(known, m_context.world.value_or(1));
    const bool allKnown = settings.microBatch && settings.gradientAccumulation;
    const bool exact = allKnown && m_context.world ? *sizes.train == divisor : *sizes.train % divisor == 0;
    if (!exact) {
        m_root.findings().add(
            "/train_batch_size",
            fmt::format("{} is not micro batch {} * accumulation {} * {} GPUs", *sizes.train,
                        settings.microBatch ? std::to_string(*settings.microBatch) : "?",
                        settings.gradientAccumulation ? std::to_string(*settings.gradientAccumulation) : "?",
                        m_context.world ? std::to_string(*m_context.world) : "?"),
            allKnown && m_context.world ? fmt::format("{}", divisor) : fmt::format("a multiple of {}", divisor));
        return;
    }
    const std::int64_t quotient = *sizes.train / divisor;
    if (allKnown && !m_context.world)
        m_config.run.launch.processes = checkedMultiply(quotient, m_config.run.strategy.parallelism.context);
    else if (!allKnown && m_context.world)
        (settings.microBatch ? settings.gradientAccumulation : settings.microBatch) = quotient;
    else if (!allKnown)
        note(NoteKind::Information, "/train_batch_size",
             fmt::format("{} sequences per step: how many per GPU follows from the number of GPUs", *sizes.train));
}

void Reader::keep(const std::string& key, const Json& value)
{
    m_carried[key] = value;
    // Other blocks ("pipeline": {"stages": "auto"}) have a meaning of it.
    if (isAutomatic(value) || (key == "scheduler" && holdsAutomatic(value)))
        note(NoteKind::Automatic, "/" + key,
             "values that are \"auto\": Hugging Face fills them from TrainingArguments; DeepSpeed alone cannot");
}

void Reader::readRest()
{
    const std::vector<std::string> known = deepSpeedKeys();
    for (const auto& [key, value] : m_root.json().items()) {
        const std::string pointer = "/" + key;
        const DeepSpeedKey meaning = deepSpeedKey(key);
        switch (meaning.use) {
        case KeyUse::Read: continue;
        case KeyUse::Removed:
            note(NoteKind::Kept, pointer,
                 fmt::format("kept on export; DeepSpeed {} and later refuse this key", meaning.removedIn));
            break;
        case KeyUse::NotPlanned: note(NoteKind::Kept, pointer, "kept on export; a plan does not follow it"); break;
        case KeyUse::WithoutEffect: note(NoteKind::Kept, pointer, "kept on export; without effect on a plan"); break;
        case KeyUse::Unknown: {
            const std::string nearest = nearestWord(key, known);
            note(NoteKind::Ignored, pointer,
                 "DeepSpeed reads no such key and says nothing" +
                     (nearest.empty() ? std::string() : "; \"" + nearest + "\" perhaps"));
        }
        }
        keep(key, value);
    }
}

} // namespace

ImportedConfig readDeepSpeedJson(const std::string& text, const std::string& file, const DeepSpeedContext& context)
{
    Json json = parseJson(withoutHjsonComments(text), file);
    Findings findings(file);
    std::vector<ConfigNote> notes;
    if (json.is_object() && json.contains("bfloat16")) {
        // runtime/precision_config.py: the old name counts only where the new one is absent
        if (json.contains("bf16")) {
            notes.push_back({NoteKind::Ignored, "/bfloat16", "\"bf16\" is there too and wins"});
        } else {
            notes.push_back({NoteKind::Rewritten, "/bfloat16", "the old name of \"bf16\""});
            json["bf16"] = json["bfloat16"];
        }
        json.erase("bfloat16");
    }
    if (!JsonCursor(json, findings).expectObject())
        findings.throwIfAny();
    ImportedConfig config;
    try {
        config = Reader(json, findings, context).read();
    } catch (const NumberTooLarge& error) {
        findings.add("/", error.what(), "smaller sizes");
    }
    findings.throwIfAny();
    config.file = file;
    config.format = ConfigFormat::DeepSpeed;
    config.notes.insert(config.notes.begin(), notes.begin(), notes.end());
    return config;
}

} // namespace shardwright
