#pragma once

// The question on the command line: a scenario file, or a model and a cluster, with flags that replace single values.

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/diagnostics.hpp"
#include "core/json.hpp"
#include "core/scenario.hpp"

namespace CLI {
class App;
}

namespace shardwright::cli {

class ScenarioOptions {
public:
    enum class Strategies : std::uint8_t { Many, One };           // One: the command has its own option for it
    enum class Source : std::uint8_t { ScenarioFile, Elsewhere }; // Elsewhere: the command names it in its own way

    void add(CLI::App& app, Strategies strategies, Source source = Source::ScenarioFile);

    /// The scenario, flags applied. Every problem of the file and of the flags comes as one InputError; those that a
    /// flag brings in are told by its name. `only` restricts it to one strategy: of the scenario's, or predefined.
    Scenario read(const std::optional<std::string>& only = std::nullopt) const;

    /// A scenario that is there already (as JSON, which messages call `file`), with the flags but --model and --cluster
    /// applied.
    Scenario readOver(Json document, const std::string& file) const;

    const std::string& file() const { return m_file; }
    void setFile(const std::string& file) { m_file = file; }

    /// The value of a flag as it was given, or nothing.
    std::optional<std::string> value(const std::string& option) const;

    /// The flags that were given and change the question.
    std::vector<std::string> given() const;

private:
    Json document(Findings& findings) const;
    void applyNames(Json& document) const;
    void applyValues(Json& document, Findings& findings) const;
    void applyStrategies(Json& document, const std::optional<std::string>& only, Findings& findings) const;
    Scenario check(const Json& document, const std::string& file, Findings& findings) const;
    Finding toldByFlag(Finding finding, const std::string& file) const;
    bool isGiven(const std::string& option) const { return m_values.count(option) != 0; }

    std::string m_file;
    std::map<std::string, std::string> m_values; // by option: what was given
};

} // namespace shardwright::cli
