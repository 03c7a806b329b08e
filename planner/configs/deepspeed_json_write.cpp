#include <fmt/format.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/deepspeed_json.hpp"

namespace shardwright {

namespace {

struct OptimizerSpelling {
    Optimizer optimizer;
    std::string_view type; // "" where neither DeepSpeed nor torch.optim has it
    double learningRate;   // the class's own default: ops/adam/fused_adam.py, ops/lion/fused_lion.py,
                           // runtime/fp16/onebit/*.py of DeepSpeed 0.19.6, torch/optim of PyTorch 2.x
    bool knownToZero;      // ZERO_SUPPORTED_OPTIMIZERS of runtime/zero/utils.py, or built by DeepSpeed itself
};
constexpr std::array kSpellings{
    OptimizerSpelling{Optimizer::AdamW, "AdamW", 1e-3, true},
    OptimizerSpelling{Optimizer::Adam, "Adam", 1e-3, true},
    OptimizerSpelling{Optimizer::SgdMomentum, "SGD", 1e-3, false},
    OptimizerSpelling{Optimizer::Sgd, "SGD", 1e-3, false},
    OptimizerSpelling{Optimizer::Adafactor, "Adafactor", 1e-2, false},
    OptimizerSpelling{Optimizer::Adam8bit, "", 1e-3, false},
    OptimizerSpelling{Optimizer::Lion, "Lion", 1e-3, true},
    OptimizerSpelling{Optimizer::OneBitAdam, "OneBitAdam", 1e-3, true},
    OptimizerSpelling{Optimizer::ZeroOneAdam, "ZeroOneAdam", 1e-3, true},
    OptimizerSpelling{Optimizer::OneBitLamb, "OneBitLamb", 1e-3, true},
};
constexpr double kUsualMomentum = 0.9; // of SGD; torch's default 0 would keep no momentum buffer

const OptimizerSpelling& spellingOf(Optimizer optimizer)
{
    for (const OptimizerSpelling& spelling : kSpellings)
        if (spelling.optimizer == optimizer)
            return spelling;
    return kSpellings.front();
}

class Writer {
public:
    Writer(const RunConfig& run, const DeepSpeedWriting& writing, std::vector<ConfigNote>& notes)
        : m_run(run), m_options(std::get<DeepSpeedOptions>(run.strategy.options)), m_writing(writing), m_notes(notes)
    {
    }

    Json write()
    {
        writeBatch();
        writePrecision();
        writeOptimizer();
        const Json options = deepSpeedOptionsJson(m_options);
        for (const auto& item : options.items()) {
            if (m_json.contains(item.key()))
                m_json[item.key()].update(item.value());
            else
                m_json[item.key()] = item.value();
        }
        writeCheckpointing();
        Json carried = m_run.carriedDeepSpeed;
        if (!m_writing.optimizer)
            carried.erase("optimizer");
        addCarried(m_json, carried);
        return std::move(m_json);
    }

private:
    void note(NoteKind kind, std::string setting, std::string text)
    {
        m_notes.push_back({kind, std::move(setting), std::move(text)});
    }

    template <typename T> void writeOrAuto(const char* key, const std::optional<T>& value, const char* filledFrom)
    {
        if (value) {
            m_json[key] = *value;
            return;
        }
        m_json[key] = "auto";
        note(NoteKind::Automatic, std::string("/") + key,
             fmt::format("not known here, so \"auto\": Hugging Face Trainer or Accelerate fills it from {}; a script "
                         "that calls deepspeed.initialize itself needs the number",
                         filledFrom));
    }

    void writeBatch();
    void writePrecision();
    void writeOptimizer();
    void writeCheckpointing();

    const RunConfig& m_run;
    const DeepSpeedOptions& m_options;
    DeepSpeedWriting m_writing;
    std::vector<ConfigNote>& m_notes;
    Json m_json = Json::object();
};

void Writer::writeBatch()
{
    const TrainingSettings& training = m_run.training;
    std::optional<std::int64_t> whole;
    if (training.microBatch && training.gradientAccumulation && m_run.launch.processes > 0) {
        const std::int64_t world = m_run.launch.processes / m_run.strategy.parallelism.context;
        whole = checkedMultiply(checkedMultiply(*training.microBatch, *training.gradientAccumulation), world);
    }
    if (m_run.strategy.parallelism.context > 1)
        m_json["sequence_parallel_size"] = m_run.strategy.parallelism.context;
    // Where it is absent DeepSpeed multiplies it out itself.
    if (whole)
        m_json["train_batch_size"] = *whole;
    else if (!training.microBatch || !training.gradientAccumulation)
        m_json["train_batch_size"] = "auto";
    writeOrAuto("train_micro_batch_size_per_gpu", training.microBatch, "the batch size of the data loader");
    writeOrAuto("gradient_accumulation_steps", training.gradientAccumulation, "the script's accumulation");
    // Always written: absent meant off before DeepSpeed 0.19.3 and means 1.0 since.
    writeOrAuto("gradient_clipping", training.gradientClipping, "max_grad_norm");
}

void Writer::writePrecision()
{
    const auto& mode = m_run.training.mixedPrecision;
    if (!mode) {
        m_json["bf16"]["enabled"] = "auto";
        m_json["fp16"]["enabled"] = "auto";
        note(NoteKind::Automatic, "/bf16/enabled",
             "precision is not known here, so \"auto\": Hugging Face Trainer or Accelerate fills it; DeepSpeed alone "
             "would train in fp32");
        return;
    }
    m_json["bf16"]["enabled"] = *mode == MixedPrecisionMode::Bf16 || *mode == MixedPrecisionMode::Fp8;
    m_json["fp16"]["enabled"] = *mode == MixedPrecisionMode::Fp16;
    if (*mode == MixedPrecisionMode::Fp8)
        note(NoteKind::InScript, "fp8",
             "DeepSpeed has no fp8 switch: bf16 is on, the script converts its linear layers");
    if (*mode == MixedPrecisionMode::No)
        note(NoteKind::Information, "/bf16/enabled",
             "no mixed precision: DeepSpeed trains in fp32, whatever the weights were loaded in");
}

void Writer::writeOptimizer()
{
    const auto& optimizer = m_run.training.optimizer;
    if (!optimizer)
        return; // the carried block, or the script's
    const OptimizerSpelling& spelling = spellingOf(*optimizer);
    const bool offloads = m_options.offloadOptimizer != OffloadDevice::None;
    // runtime/engine.py: ZeRO refuses optimizers it has not tested, and other than its own when it offloads
    if (m_options.stage > 0 && !spelling.knownToZero) {
        m_json["zero_allow_untested_optimizer"] = true;
        if (offloads)
            m_json["zero_force_ds_cpu_optimizer"] = false;
    }
    if (spelling.type.empty() || !m_writing.optimizer) {
        note(NoteKind::InScript, "optimizer",
             fmt::format("the training script makes the optimizer: {}", nameOf(*optimizer)));
        return;
    }
    Json& block = m_json["optimizer"];
    block["type"] = spelling.type;
    Json params = Json::object();
    if (m_run.carriedDeepSpeed.contains("optimizer"))
        params = m_run.carriedDeepSpeed["optimizer"].value("params", Json::object());
    if (!params.contains("lr")) {
        params["lr"] = spelling.learningRate;
        note(NoteKind::InScript, "/optimizer/params/lr",
             fmt::format("a plan has no learning rate: {} is {}'s own default, written out so that it shows; set yours",
                         spelling.learningRate, spelling.type));
    }
    if (*optimizer == Optimizer::Adam)
        params["adam_w_mode"] = false; // both "Adam" and "AdamW" mean AdamW without it
    if (*optimizer == Optimizer::SgdMomentum && !params.contains("momentum"))
        params["momentum"] = kUsualMomentum;
    block["params"] = params;
}

void Writer::writeCheckpointing()
{
    const auto checkpointing = m_run.training.checkpointing.value_or(Checkpointing::None);
    Json block = Json::object();
    switch (checkpointing) {
    case Checkpointing::None: return;
    case Checkpointing::Selective:
        note(NoteKind::InScript, "activation checkpointing", "selective: the model code does it");
        return;
    case Checkpointing::Full:
        note(NoteKind::InScript, "activation checkpointing",
             "gradient_checkpointing=True of TrainingArguments, or model.gradient_checkpointing_enable()");
        return;
    case Checkpointing::Partitioned: block["partition_activations"] = true; break;
    case Checkpointing::Cpu: block["cpu_checkpointing"] = true; break;
    }
    m_json["activation_checkpointing"] = block;
    note(NoteKind::InScript, "/activation_checkpointing",
         "acts only where the model calls deepspeed.checkpointing; Hugging Face's gradient_checkpointing does not");
}

} // namespace

Json deepSpeedJson(const RunConfig& run, const DeepSpeedWriting& writing, std::vector<ConfigNote>& notes)
{
    const auto& options = std::get<DeepSpeedOptions>(run.strategy.options);
    if (options.micsShardSize > 0)
        notes.push_back(
            {NoteKind::Information, "/zero_optimization/mics_shard_size",
             "needs DeepSpeed before 0.19.7, which removed MiCS, and deepspeed.zero.MiCS_Init in the script"});
    return Writer(run, writing, notes).write();
}

} // namespace shardwright
