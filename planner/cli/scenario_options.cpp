#include "planner/cli/scenario_options.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/plain_text.hpp"
#include "core/scenario_file.hpp"

namespace shardwright::cli {

namespace {

namespace fs = std::filesystem;

constexpr const char* kCommandLine = "command line";

enum class Kind : std::uint8_t { Text, Integer, List, Switch, Precision, Price };

/// A flag and the place of a scenario file that it sets, so that one reader checks both.
struct Flag {
    const char* option;
    const char* pointer;
    Kind kind;
    const char* type;
    const char* help;
};

constexpr const char* kModel = "--model";
constexpr const char* kCluster = "--cluster";
constexpr const char* kNodes = "--nodes";
constexpr const char* kGpusPerNode = "--gpus-per-node";
constexpr const char* kPrice = "--price";
constexpr const char* kStrategies = "--strategies";

const std::vector<Flag>& flags()
{
    static const std::vector<Flag> table{
        {kModel, "/model", Kind::Text, "ID|PATH", "model that ships, or a Hugging Face config.json or its folder"},
        {kCluster, "/cluster", Kind::Text, "ID|PATH", "cluster that ships, or a file (`clusters --describe`)"},
        {kNodes, "/cluster/nodes", Kind::Integer, "N", "nodes of the cluster"},
        {kGpusPerNode, "/cluster/gpus_per_node", Kind::Integer, "N", "GPUs of a node"},
        {kPrice, "/cluster/price_per_gpu_hour", Kind::Price, "DOLLARS", "price of one GPU for an hour"},
        {"--sequence-length", "/training/sequence_length", Kind::Integer, "N", "tokens per sequence"},
        {"--micro-batch", "/training/micro_batch", Kind::Integer, "N", "sequences per GPU and micro-step"},
        {"--gradient-accumulation", "/training/gradient_accumulation", Kind::Integer, "N", "micro-steps per step"},
        {"--activation-checkpointing", "/training/activation_checkpointing", Kind::Text, "HOW",
         "none, selective, full, partitioned or cpu"},
        {"--checkpoint-every", "/training/checkpoint_every", Kind::Integer, "N",
         "with full checkpointing: only every n-th block"},
        {"--optimizer", "/training/optimizer", Kind::Text, "NAME",
         "adamw, sgd-momentum, adafactor, adamw-8bit, lion, ..."},
        {"--precision", "/training/precision/mixed", Kind::Precision, "DTYPE",
         "mixed precision: bf16, fp16, fp8 or no"},
        {"--load-dtype", "/training/precision/load", Kind::Text, "DTYPE",
         "what the weights are loaded in: fp32, bf16 or fp16"},
        {"--attention", "/training/attention", Kind::Text, "KERNEL", "flash, sdpa, sdpa-masked or eager"},
        {"--implementation", "/training/implementation", Kind::Text, "CODE",
         "whose modelling code: hf, torchtitan, torchtune, llm-foundry, megatron or shardrun"},
        {"--loss", "/training/loss", Kind::Text, "HOW", "default, shifted-copy, compiled or fused"},
        {"--compile", "/training/compile", Kind::Switch, "", "torch.compile of each block"},
        {"--lora-rank", "/training/lora/rank", Kind::Integer, "N", "train low-rank adapters only"},
        {"--lora-targets", "/training/lora/target_modules", Kind::List, "A,B,...", "modules that get adapters"},
        {kStrategies, "/strategies", Kind::List, "A,B,...", "compare only these (`shardplan strategies`)"}};
    return table;
}

std::vector<std::string> splitAtCommas(const std::string& text)
{
    std::vector<std::string> parts;
    std::size_t start = 0;
    while (start <= text.size()) {
        const std::size_t comma = std::min(text.find(',', start), text.size());
        if (comma > start)
            parts.push_back(text.substr(start, comma - start));
        start = comma + 1;
    }
    return parts;
}

/// The number, or the text as it is: the scenario's reader then says what it expected.
Json integerOrText(const std::string& text)
{
    std::int64_t number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, number);
    return error == std::errc() && stop == end ? Json(number) : Json(text);
}

/// Sets document[pointer], unless something on the way is no object, which the scenario's reader complains about.
void setMember(Json& document, const std::string& pointer, Json value)
{
    Json* at = &document;
    std::size_t start = 1;
    for (;;) {
        if (at->is_null())
            *at = Json::object();
        if (!at->is_object())
            return;
        const std::size_t slash = pointer.find('/', start);
        at = &(*at)[pointer.substr(start, slash - start)];
        if (slash == std::string::npos)
            break;
        start = slash + 1;
    }
    *at = std::move(value);
}

/// A path given on the command line counts from the working folder, one in a scenario from the scenario's.
std::string fromWorkingFolder(const std::string& text, const std::string& scenarioFile)
{
    std::error_code ignored;
    const bool isPath = text.find('/') != std::string::npos || text.find('.') != std::string::npos;
    if (scenarioFile.empty() || !isPath || !fs::exists(text, ignored))
        return text;
    return fs::absolute(text).lexically_normal().string();
}

} // namespace

void ScenarioOptions::add(CLI::App& app, Strategies strategies, Source source)
{
    if (source == Source::ScenarioFile)
        app.add_option("scenario", m_file, "scenario file; flags replace single values of it")->type_name("SCENARIO");
    for (const Flag& flag : flags()) {
        if (strategies == Strategies::One && std::string_view(flag.option) == kStrategies)
            continue;
        if (flag.kind == Kind::Switch) {
            // "--compile=false" counts -1: it replaces a scenario's true
            app.add_flag_function(
                   flag.option,
                   [this, &flag](std::int64_t count) { m_values[flag.option] = count > 0 ? "true" : "false"; },
                   flag.help)
                ->group("The question");
            continue;
        }
        app.add_option_function<std::string>(
               flag.option, [this, &flag](const std::string& text) { m_values[flag.option] = text; }, flag.help)
            ->type_name(flag.type)
            ->group("The question");
    }
}

std::vector<std::string> ScenarioOptions::given() const
{
    std::vector<std::string> options;
    for (const Flag& flag : flags())
        if (isGiven(flag.option))
            options.emplace_back(flag.option);
    return options;
}

std::optional<std::string> ScenarioOptions::value(const std::string& option) const
{
    const auto it = m_values.find(option);
    return it == m_values.end() ? std::nullopt : std::optional(it->second);
}

Json ScenarioOptions::document(Findings& findings) const
{
    if (!m_file.empty())
        return parseJson(readTextFile(m_file), m_file);
    for (const char* option : {kModel, kCluster})
        if (!isGiven(option))
            findings.add(option, "is missing", "a scenario file, or --model and --cluster");
    Json json{{"schema", "shardwright-scenario/1"}};
    if (isGiven(kModel) && isGiven(kCluster))
        json["name"] = fs::path(m_values.at(kModel)).filename().string() + " on " +
                       fs::path(m_values.at(kCluster)).stem().string();
    return json;
}

void ScenarioOptions::applyNames(Json& document) const
{
    if (isGiven(kModel))
        document["model"] = fromWorkingFolder(m_values.at(kModel), m_file);
    if (isGiven(kCluster))
        document["cluster"] = fromWorkingFolder(m_values.at(kCluster), m_file);
}

void ScenarioOptions::applyValues(Json& document, Findings& findings) const
{
    const bool sized = isGiven(kNodes) || isGiven(kGpusPerNode) || isGiven(kPrice);
    if (const auto cluster = document.find("cluster"); sized && cluster != document.end() && cluster->is_string())
        *cluster = {{"id", *cluster}};
    for (const Flag& flag : flags()) {
        const std::string option = flag.option;
        if (!isGiven(option) || option == kModel || option == kCluster || option == kStrategies)
            continue;
        const std::string& text = m_values.at(option);
        switch (flag.kind) {
        case Kind::Text: setMember(document, flag.pointer, text); break;
        case Kind::Integer: setMember(document, flag.pointer, integerOrText(text)); break;
        case Kind::List: setMember(document, flag.pointer, splitAtCommas(text)); break;
        case Kind::Price: setMember(document, flag.pointer, text + " $/h"); break;
        case Kind::Switch: setMember(document, flag.pointer, text == "true"); break;
        case Kind::Precision:
            if (text != "bf16" && text != "fp16" && text != "fp8" && text != "no") {
                findings.add(option, fmt::format("is \"{}\"", withoutControls(text)), "bf16, fp16, fp8 or no");
                break;
            }
            setMember(document, flag.pointer, text == "fp8" ? "bf16" : text);
            setMember(document, "/training/precision/fp8", text == "fp8");
            break;
        }
    }
    if (!given().empty())
        document.erase("published"); // figures of the scenario as it stands, not of another
}

void ScenarioOptions::applyStrategies(Json& document, const std::optional<std::string>& only, Findings& findings) const
{
    std::vector<std::string> wanted;
    if (only)
        wanted = {*only};
    else if (isGiven(kStrategies))
        wanted = splitAtCommas(m_values.at(kStrategies));
    else
        return;
    const char* option = only ? "--strategy" : kStrategies;
    constexpr int kAnyNode = 0;      // which the cluster has is not known yet
    std::map<std::string, Json> own; // spelled out in the scenario
    if (const auto list = document.find("strategies"); list != document.end() && list->is_array())
        for (const Json& element : *list)
            if (element.is_object() && element.contains("name") && element["name"].is_string())
                own[element["name"].get<std::string>()] = element;
    std::vector<std::string> known = strategyNames();
    for (const auto& [name, spelledOut] : own)
        known.push_back(name);
    Json chosen = Json::array();
    for (const std::string& name : wanted) {
        const bool isAll = name == "all" && !only;
        if (const auto it = own.find(name); it != own.end())
            chosen.push_back(it->second);
        else if (isAll || strategyByName(name, kAnyNode))
            chosen.push_back(name);
        else if (const std::string nearest = nearestWord(name, known); !nearest.empty())
            findings.add(option, fmt::format("there is no strategy \"{}\"", withoutControls(name)),
                         fmt::format("\"{}\" perhaps", nearest));
        else
            findings.add(
                option, fmt::format("there is no strategy \"{}\"", withoutControls(name)),
                fmt::format("one of {}, or one that the scenario spells out", fmt::join(strategyNames(), ", ")));
    }
    if (wanted.empty())
        findings.add(option, "names nothing", "names of strategies with commas between them");
    document.erase("strategies"); // an empty list would be told as another problem
    if (!chosen.empty())
        document["strategies"] = chosen;
    document.erase("published");
}

Finding ScenarioOptions::toldByFlag(Finding finding, const std::string& file) const
{
    if (finding.file == file)
        for (const Flag& flag : flags())
            if (isGiven(flag.option) && finding.place == flag.pointer)
                return {kCommandLine, flag.option, finding.what, finding.expected};
    return finding;
}

Scenario ScenarioOptions::check(const Json& document, const std::string& file, Findings& findings) const
{
    Scenario scenario;
    try {
        scenario = scenarioFromJson(document, file);
    } catch (const InputError& error) {
        std::vector<Finding> told;
        for (const Finding& finding : error.findings())
            told.push_back(toldByFlag(finding, file));
        findings.add(InputError(std::move(told)));
    }
    findings.throwIfAny();
    return scenario;
}

Scenario ScenarioOptions::read(const std::optional<std::string>& only) const
{
    Findings findings(kCommandLine);
    Json json = document(findings);
    if (json.is_object()) {
        applyNames(json);
        applyValues(json, findings);
        applyStrategies(json, only, findings);
    }
    if (m_file.empty() && !(isGiven(kModel) && isGiven(kCluster)))
        findings.throwIfAny();
    return check(json, m_file.empty() ? kCommandLine : m_file, findings);
}

Scenario ScenarioOptions::readOver(Json document, const std::string& file) const
{
    Findings findings(kCommandLine);
    applyValues(document, findings);
    return check(document, file, findings);
}

} // namespace shardwright::cli
