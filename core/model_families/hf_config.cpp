#include "core/model_families/hf_config.hpp"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

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

/// Settings of RMSNorm decoders with rotary embeddings. transformers 4 has rope_theta and rope_scaling, transformers 5
/// both in rope_parameters.
Numerics commonNumerics(const HfConfig& config, const ClassDefaults& defaults)
{
    Numerics n;
    n.normEpsilon = config.numberOr("rms_norm_eps", n.normEpsilon, 0, 1);
    n.initializerRange = config.numberOr("initializer_range", n.initializerRange, 0, 1e3);
    constexpr double kLargestTheta = 1e15;
    n.ropeTheta = config.numberOr("rope_theta", n.ropeTheta, 1, kLargestTheta);
    for (const char* name : {"rope_scaling", "rope_parameters"}) {
        const auto member = config.cursor().find(name);
        if (!member || !member->expectObject())
            continue;
        const HfConfig rope(*member);
        n.ropeTheta = rope.numberOr("rope_theta", n.ropeTheta, 1, kLargestTheta);
        const std::string type = rope.textOr("rope_type", rope.textOr("type", "default"));
        if (type != "default")
            n.others.push_back(fmt::format("{} {}", name, type));
    }
    const std::string activation = config.textOr("hidden_act", "silu");
    if (activation != "silu")
        n.others.push_back("hidden_act " + activation);
    if (config.flag("use_sliding_window", false)) // Qwen2: of some of its layers
        n.others.push_back("use_sliding_window");
    if (defaults.slidingWindow > 0 && !config.isNull("sliding_window"))
        n.slidingWindow = config.sizeOr({"sliding_window"}, defaults.slidingWindow);
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
    a.numerics = commonNumerics(config, defaults);
    config.expectDivides("num_key_value_heads", a.kvHeads, "num_attention_heads", a.heads);
    return a;
}

} // namespace shardwright
