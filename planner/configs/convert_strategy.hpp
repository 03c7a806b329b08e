#pragma once

// What a strategy becomes under another framework: the part of a conversion that changes what is trained how.

#include <string>
#include <utility>

#include "planner/configs/configs.hpp"

namespace shardwright {

/// What a format configures.
enum class Family : std::uint8_t { Ddp, Fsdp1, Fsdp2, DeepSpeed };

Family familyOf(ConfigFormat format);

/// A conversion while it is found out what becomes of each setting.
class ConversionReport {
public:
    void kept(std::string setting, std::string text)
    {
        m_conversion.kept.push_back({std::move(setting), std::move(text)});
    }
    void translated(std::string setting, std::string text)
    {
        m_conversion.translated.push_back({std::move(setting), std::move(text)});
    }
    void lost(std::string setting, std::string text)
    {
        m_conversion.noEquivalent.push_back({std::move(setting), std::move(text)});
    }
    Conversion with(ConfigExport result) &&
    {
        m_conversion.result = std::move(result);
        return std::move(m_conversion);
    }

private:
    Conversion m_conversion;
};

/// The options of `run`, which came from `source`, as the framework of `target` has them. What only a file says goes to
/// the run's carried settings.
StrategyOptions convertStrategy(RunConfig& run, ConfigFormat source, ConfigFormat target, ConversionReport& report);

} // namespace shardwright
