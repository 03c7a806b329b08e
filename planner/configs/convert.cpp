#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "planner/configs/convert_strategy.hpp"

namespace shardwright {

namespace {

bool isAccelerate(ConfigFormat format)
{
    return format != ConfigFormat::DeepSpeed;
}

class Converter {
public:
    Converter(const ImportedConfig& source, ConfigFormat target, const std::optional<Model>& model)
        : m_source(source), m_target(target), m_run(source.run)
    {
        if (model && m_run.wrapClasses.empty())
            m_run.wrapClasses = wrapClassesOf(*model);
    }

    Conversion convert(const ExportOptions& options);

private:
    void convertTraining();
    void convertCarried();

    const ImportedConfig& m_source;
    ConfigFormat m_target;
    RunConfig m_run;
    ConversionReport m_report;
};

void Converter::convertTraining()
{
    const TrainingSettings& training = m_run.training;
    if (training.mixedPrecision)
        m_report.kept("mixed precision", std::string(nameOf(*training.mixedPrecision)));
    if (training.microBatch)
        m_report.kept("micro batch", fmt::format("{} per GPU", *training.microBatch));
    if (training.gradientAccumulation)
        m_report.kept("gradient accumulation", fmt::format("{} micro-steps", *training.gradientAccumulation));
    if (training.gradientClipping)
        m_report.kept("gradient clipping", fmt::format("{}", *training.gradientClipping));
    if (training.optimizer)
        m_report.kept("optimizer", std::string(nameOf(*training.optimizer)));
    if (training.checkpointing)
        m_report.kept("activation checkpointing", std::string(nameOf(*training.checkpointing)));
    if (m_run.launch.processes > 0)
        m_report.kept("processes", fmt::format("{} on {} node(s)", m_run.launch.processes, m_run.launch.nodes));
}

void Converter::convertCarried()
{
    const bool sameFamily = familyOf(m_source.format) == familyOf(m_target);
    const auto tell = [&](const Json& carried, bool stays, const char* where) {
        for (const auto& item : carried.items()) {
            // Of an Accelerate section only what no option holds is carried: its keys tell, not its name.
            const bool section = item.key().ends_with("_config") && item.value().is_object();
            const bool named = item.key() == "optimizer" && m_run.training.optimizer; // its type is an option
            const Json settings = section ? item.value() : Json{{named ? "optimizer.params" : item.key(), nullptr}};
            for (const auto& setting : settings.items())
                stays ? m_report.kept(setting.key(), "as it was")
                      : m_report.lost(setting.key(), fmt::format("{} has no such setting", where));
        }
    };
    tell(m_run.carriedDeepSpeed, familyOf(m_target) == Family::DeepSpeed, "FSDP");
    if (!isAccelerate(m_target)) {
        tell(m_run.carriedAccelerate, false, "a DeepSpeed file");
        m_run.carriedAccelerate = Json::object();
        return;
    }
    if (!sameFamily) {
        Json& carried = m_run.carriedAccelerate;
        for (const char* section : {"fsdp_config", "deepspeed_config", "parallelism_config"})
            if (carried.contains(section)) {
                tell(carried[section], false, nameOf(m_target).data());
                carried.erase(section);
            }
    }
    tell(m_run.carriedAccelerate, true, "");
}

Conversion Converter::convert(const ExportOptions& options)
{
    convertTraining();
    convertCarried();
    const StrategyOptions converted = convertStrategy(m_run, m_source.format, m_target, m_report);
    const bool saysUlysses = m_target == ConfigFormat::DeepSpeed || m_target == ConfigFormat::AccelerateDeepSpeed;
    if (const std::int64_t ranks = m_run.strategy.parallelism.context; ranks > 1 && !saysUlysses)
        m_report.lost("sequence_parallel_size", fmt::format("{}: all-to-all over heads is DeepSpeed's own", ranks));
    else if (ranks > 1)
        m_report.kept("sequence_parallel_size", std::to_string(ranks));
    m_run.strategy = {describeOptions(converted), converted, saysUlysses ? m_run.strategy.parallelism : Parallelism{}};
    if (familyOf(m_source.format) == familyOf(m_target))
        m_report.kept("strategy", m_run.strategy.name);
    else
        m_report.translated("strategy", fmt::format("{} became {}", m_source.run.strategy.name, m_run.strategy.name));
    if (familyOf(m_target) != Family::DeepSpeed)
        m_run.carriedDeepSpeed = Json::object();
    ConfigExport result = writeConfig(m_run, m_target, options);
    for (const ConfigNote& note : result.notes)
        if (note.kind == NoteKind::NotSayable)
            m_report.lost(note.setting, note.text);
    return std::move(m_report).with(std::move(result));
}

} // namespace

Conversion convertConfig(const ImportedConfig& config, ConfigFormat target, const std::optional<Model>& model,
                         const ExportOptions& options)
{
    return Converter(config, target, model).convert(options);
}

} // namespace shardwright
