#include "core/model_families/hf_config.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

std::optional<JsonCursor> findAny(const JsonCursor& cursor, std::initializer_list<const char*> names)
{
    for (const char* name : names)
        if (auto member = cursor.find(name))
            return member;
    return std::nullopt;
}

} // namespace

std::int64_t HfConfig::size(std::initializer_list<const char*> names, const char* meaning) const
{
    if (const auto member = findAny(m_cursor, names))
        return member->asInteger(1, std::numeric_limits<std::int64_t>::max()).value_or(0);
    m_cursor.require(*names.begin(), meaning);
    return 0;
}

std::int64_t HfConfig::sizeOr(std::initializer_list<const char*> names, std::int64_t fallback,
                              std::int64_t minimum) const
{
    if (const auto member = findAny(m_cursor, names))
        return member->asInteger(minimum, std::numeric_limits<std::int64_t>::max()).value_or(0);
    return fallback;
}

std::int64_t HfConfig::layers(std::initializer_list<const char*> names) const
{
    if (const auto member = findAny(m_cursor, names))
        return member->asInteger(1, kMaximumLayers).value_or(0);
    m_cursor.require(*names.begin(), "the number of transformer blocks");
    return 0;
}

bool HfConfig::isNull(const char* name) const
{
    const Json& json = m_cursor.json();
    return json.is_object() && json.contains(name) && json[name].is_null();
}

bool HfConfig::flag(const char* name, bool fallback) const
{
    bool value = fallback;
    m_cursor.read(name, value);
    return value;
}

std::string HfConfig::textOr(const char* name, const std::string& fallback) const
{
    std::string value = fallback;
    m_cursor.read(name, value);
    return value;
}

double HfConfig::dropout(const char* name, double fallback) const
{
    double probability = fallback;
    m_cursor.read(name, probability, 0, 1);
    return probability;
}

double HfConfig::numberOr(const char* name, double fallback, double minimum, double maximum) const
{
    double value = fallback;
    m_cursor.read(name, value, minimum, maximum);
    return value;
}

void HfConfig::expectDivides(const char* divisorName, std::int64_t divisor, const char* dividendName,
                             std::int64_t dividend) const
{
    if (divisor > 0 && dividend > 0 && dividend % divisor != 0)
        m_cursor.complain(fmt::format("{} {} does not divide {} {}", divisorName, divisor, dividendName, dividend),
                          fmt::format("{} that {} divides", dividendName, divisorName));
}

void HfConfig::expectRouting(std::int64_t expertsPerToken, std::int64_t experts) const
{
    if (expertsPerToken > 0 && experts > 0 && expertsPerToken > experts)
        m_cursor.complain(
            fmt::format("num_experts_per_tok is {}, but there are only {} experts", expertsPerToken, experts),
            fmt::format("at most {}", experts));
}

namespace {

constexpr double kLargestTheta = 1e15;
constexpr double kLargestFactor = 1e6;
constexpr std::int64_t kQwenFullLayers = 28; // max_window_layers of Qwen2Config and Qwen3Config

/// What the attention is multiplied by for its lower entropy over longer contexts (arXiv 2309.00071 sec. 3.4), split
/// by DeepSeek's mscale and mscale_all_dim where both are given.
double yarnAttentionFactor(const HfConfig& rope, double factor)
{
    const auto grown = [factor](double scale) { return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0; };
    const double scale = rope.numberOr("mscale", 0, 0, kLargestFactor);
    const double allDimensions = rope.numberOr("mscale_all_dim", 0, 0, kLargestFactor);
    const double usual = scale > 0 && allDimensions > 0 ? grown(scale) / grown(allDimensions) : grown(1);
    return rope.numberOr("attention_factor", usual, 0, kLargestFactor);
}

/// What transformers calls `type`; others are not computed, and said so.
void readRopeScaling(const HfConfig& config, const HfConfig& rope, const std::string& place, Numerics& n)
{
    const std::string type = rope.textOr("rope_type", rope.textOr("type", "default"));
    const std::optional<RopeKind> kind = valueOf<RopeKind>(type);
    if (!kind) {
        n.others.push_back(fmt::format("{} {}", place, type));
        return;
    }
    RopeScaling& scaling = n.rope;
    scaling.kind = *kind;
    if (*kind == RopeKind::Default)
        return;
    if (const auto factor = rope.cursor().require("factor", "how many times longer contexts become"))
        scaling.factor = factor->asNumber(1, kLargestFactor).value_or(1);
    // transformers lets a field beside rope_scaling win (Phi-3 has it there); absent, the context length counts.
    const std::int64_t declared = config.sizeOr({"max_position_embeddings"}, 0);
    scaling.originalPositions = *kind == RopeKind::Dynamic
                                    ? declared
                                    : config.sizeOr({"original_max_position_embeddings"},
                                                    rope.sizeOr({"original_max_position_embeddings"}, declared));
    if (*kind != RopeKind::Linear && scaling.originalPositions == 0)
        config.cursor().require("max_position_embeddings", "the context length that is stretched");
    if (*kind == RopeKind::Llama3) {
        for (const auto& [name, target] : {std::pair{"low_freq_factor", &scaling.lowFrequency},
                                           std::pair{"high_freq_factor", &scaling.highFrequency}})
            if (const auto member = rope.cursor().require(name, "turns within the original context length"))
                *target = member->asNumber(1e-6, kLargestFactor).value_or(1);
        if (scaling.highFrequency <= scaling.lowFrequency)
            rope.cursor().complain(fmt::format("high_freq_factor {} does not exceed low_freq_factor {}",
                                               scaling.highFrequency, scaling.lowFrequency));
    } else if (*kind == RopeKind::Yarn) {
        scaling.betaFast = rope.numberOr("beta_fast", scaling.betaFast, 1e-6, kLargestFactor);
        scaling.betaSlow = rope.numberOr("beta_slow", scaling.betaSlow, 1e-6, kLargestFactor);
        scaling.truncate = rope.flag("truncate", true);
        scaling.attentionFactor = yarnAttentionFactor(rope, scaling.factor);
    }
}

/// transformers 4 has rope_theta and rope_scaling, transformers 5 both in rope_parameters.
void readRope(const HfConfig& config, Numerics& n)
{
    n.ropeTheta = config.numberOr("rope_theta", n.ropeTheta, 1, kLargestTheta);
    double rotated = config.numberOr("partial_rotary_factor", 1, 0, 1);
    for (const char* name : {"rope_scaling", "rope_parameters"}) {
        const auto member = config.cursor().find(name);
        if (!member || !member->expectObject() || member->json().empty())
            continue;
        const HfConfig rope(*member);
        n.ropeTheta = rope.numberOr("rope_theta", n.ropeTheta, 1, kLargestTheta);
        rotated = rope.numberOr("partial_rotary_factor", rotated, 0, 1);
        readRopeScaling(config, rope, name, n);
    }
    if (rotated != 1)
        n.others.push_back(fmt::format("partial_rotary_factor {}", rotated));
}

/// Mistral's window is every block's; Qwen's begins behind max_window_layers blocks and wants to be asked for.
/// transformers 5 writes the kind of every block.
void readWindow(const HfConfig& config, const ClassDefaults& defaults, std::int64_t layers, Numerics& n)
{
    if (defaults.slidingWindow == 0 || config.isNull("sliding_window"))
        return;
    if (defaults.windowAsked && !config.flag("use_sliding_window", false))
        return;
    n.slidingWindow = config.sizeOr({"sliding_window"}, defaults.slidingWindow);
    if (!defaults.windowAsked)
        return;
    const std::int64_t full = config.sizeOr({"max_window_layers"}, kQwenFullLayers, 0);
    for (std::int64_t block = 0; block < layers; ++block)
        n.windowed.push_back(block >= full);
    const auto kinds = config.cursor().find("layer_types");
    if (!kinds || !kinds->expectArray())
        return;
    if (static_cast<std::int64_t>(kinds->elements().size()) != layers) {
        kinds->complain(fmt::format("names {} blocks", kinds->elements().size()), fmt::format("{} of them", layers));
        return;
    }
    for (std::size_t block = 0; block < n.windowed.size(); ++block)
        if (const auto kind = kinds->elements()[block].asString()) {
            n.windowed[block] = *kind == "sliding_attention";
            if (!n.windowed[block] && *kind != "full_attention")
                n.others.push_back("layer_types " + *kind);
        }
}

/// Settings of RMSNorm decoders with rotary embeddings.
Numerics commonNumerics(const HfConfig& config, const ClassDefaults& defaults, std::int64_t layers)
{
    Numerics n;
    n.normEpsilon = config.numberOr("rms_norm_eps", n.normEpsilon, 0, 1);
    n.initializerRange = config.numberOr("initializer_range", n.initializerRange, 0, 1e3);
    readRope(config, n);
    readWindow(config, defaults, layers, n);
    const std::string activation = config.textOr("hidden_act", "silu");
    if (activation != "silu")
        n.others.push_back("hidden_act " + activation);
    return n;
}

} // namespace

Architecture commonArchitecture(const HfConfig& config, const ClassDefaults& defaults)
{
    Architecture a;
    a.hidden = config.size({"hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"num_hidden_layers"});
    a.heads = config.size({"num_attention_heads"}, "the number of attention (query) heads");
    // An explicit null means "as many as query heads" even where the class has a number as its default.
    const bool asQueries = defaults.kvHeads == 0 || config.isNull("num_key_value_heads");
    a.kvHeads = config.sizeOr({"num_key_value_heads"}, asQueries ? a.heads : defaults.kvHeads);
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.sizeOr({"max_position_embeddings"}, 0);
    a.tiedEmbedding = config.flag("tie_word_embeddings", defaults.tied);
    a.attentionDropout = config.dropout("attention_dropout", defaults.attentionDropout);

    a.headDim = config.sizeOr({"head_dim"}, defaults.headDim);
    if (a.headDim == 0 && !config.cursor().has("head_dim")) {
        config.expectDivides("num_attention_heads", a.heads, "hidden_size", a.hidden);
        a.headDim = a.heads > 0 ? a.hidden / a.heads : 0;
    }
    a.valueHeadDim = a.headDim;
    a.numerics = commonNumerics(config, defaults, a.layers);
    config.expectDivides("num_key_value_heads", a.kvHeads, "num_attention_heads", a.heads);
    return a;
}

} // namespace shardwright
