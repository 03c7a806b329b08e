#pragma once

// Reading the fields of a Hugging Face config.json. Families say which fields they have and what the class default is
// where one is absent; every problem goes to the findings of the file, and nothing is computed before stopIfWrong().

#include <initializer_list>
#include <string>

#include "core/json_cursor.hpp"
#include "core/model.hpp"

namespace shardwright {

/// Most blocks a model may have. The largest that anybody described has 315 (ZeRO-Infinity, arXiv 2104.07857, 100T).
constexpr std::int64_t kMaximumLayers = 100000;

/// Most parameter tensors a model may have. DeepSeek-V3 has 45,337 with its experts.
constexpr std::int64_t kMaximumTensors = 10000000;

class HfConfig {
public:
    explicit HfConfig(const JsonCursor& cursor) : m_cursor(cursor) {}

    const JsonCursor& cursor() const { return m_cursor; }

    // Fields may go by several names (GPT-2's n_embd is everybody's hidden_size); the first that is there counts.
    // A field that is null counts as absent, as in transformers.

    /// A dimension that must be there, at least 1. 0 after a complaint.
    std::int64_t size(std::initializer_list<const char*> names, const char* meaning) const;

    /// A dimension that has a default.
    std::int64_t sizeOr(std::initializer_list<const char*> names, std::int64_t fallback,
                        std::int64_t minimum = 1) const;

    /// The number of blocks: `size` with the upper bound kMaximumLayers.
    std::int64_t layers(std::initializer_list<const char*> names) const;

    /// The field is there and null: in the few places where transformers tells that from absent.
    bool isNull(const char* name) const;

    bool flag(const char* name, bool fallback) const;

    std::string textOr(const char* name, const std::string& fallback) const;

    /// A dropout probability; `fallback` when it is absent.
    double dropout(const char* name, double fallback) const;

    /// A number that has a default.
    double numberOr(const char* name, double fallback, double minimum, double maximum) const;

    /// Complains when `divisor` does not divide `dividend`. Zeros were complained about before and pass.
    void expectDivides(const char* divisorName, std::int64_t divisor, const char* dividendName,
                       std::int64_t dividend) const;

    /// Complains when `expertsPerToken` exceeds `experts`.
    void expectRouting(std::int64_t expertsPerToken, std::int64_t experts) const;

    /// Throws InputError when anything was found so far.
    void stopIfWrong() const { m_cursor.findings().throwIfAny(); }

private:
    JsonCursor m_cursor;
};

/// What the configuration class of a family assumes where a field is absent.
struct ClassDefaults {
    std::int64_t kvHeads = 0; // 0: as many as attention heads
    std::int64_t headDim = 0; // 0: hidden_size / num_attention_heads
    bool tied = false;
    double attentionDropout = 0;
    std::int64_t slidingWindow = 0; // where the field is absent; 0: the family has none
    bool windowAsked = false;       // only with use_sliding_window, from max_window_layers on (Qwen)
};

/// The dimensions of a decoder that uses the common field names (Llama's), checked against each other.
Architecture commonArchitecture(const HfConfig& config, const ClassDefaults& defaults);

} // namespace shardwright
