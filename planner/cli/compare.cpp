#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/planning.hpp"
#include "planner/cli/published.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/executable_plan.hpp"
#include "planner/recommendation.hpp"
#include "planner/report/compare_report.hpp"
#include "planner/report/result_json.hpp"
#include "planner/what_if.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan compare scenarios/llama-2-7b-8xa100.json
  shardplan compare scenarios/llama-2-7b-8xa100.json --micro-batch 8 --activation-checkpointing full
  shardplan compare --model llama-3-8b --cluster dgx-h100 --nodes 2 --sequence-length 8192 --only-fitting
  shardplan compare --model llama-2-7b --cluster 1xrtx4090 --lora-rank 8 --load-dtype bf16 --sequence-length 512
  shardplan compare scenarios/llama-2-13b-8xa100-cpu-offload.json --recommend
  shardplan compare scenarios/llama-2-7b-8xa100.json --strategies ddp,fsdp2-full-shard --format csv
  shardplan compare scenarios/llama-2-7b-8xa100.json --published
  shardplan compare scenarios/tiny-llama-4-ranks.json --emit-plan fsdp2-full-shard -o plan.json

Exits with 1 when nothing fits. --format json follows the contract in planner/README.md; --format csv has one line per
strategy, bytes as integers.)";

struct Options {
    ScenarioOptions question;
    OutputOptions output;
    std::vector<std::string> files;
    bool published = false;
    bool recommend = false;
    bool onlyFitting = false;
    std::string emitPlan; // a strategy's name
};

/// plan.json of one strategy, for shardrun.
ExitCode emitPlan(const Options& options)
{
    if (options.recommend || options.onlyFitting)
        throw InputError("command line", "--emit-plan", "is an answer of its own",
                         "it without --recommend and --only-fitting");
    const Scenario scenario = options.question.read(options.emitPlan);
    if (scenario.training.implementation != Implementation::Shardrun)
        fmt::print(stderr, "note: planned for shardrun's own layers, not for those of \"{}\": activations differ\n",
                   nameOf(scenario.training.implementation));
    options.output.write(planFileText(executablePlan(scenario, scenario.strategies.front())));
    return ExitCode::Done;
}

/// The recommendation at length: what would change it, and what to launch where no config file can say it.
void argue(const Scenario& scenario, const std::vector<Plan>& plans, Recommendation& best)
{
    best.reason += " " + spoken(whatWouldChangeIt(scenario, best));
    const auto exportable = [&](const std::string& name) {
        const auto strategy = std::find_if(scenario.strategies.begin(), scenario.strategies.end(),
                                           [&](const Strategy& each) { return each.name == name; });
        return strategy != scenario.strategies.end() && canBeExported(scenario, *strategy);
    };
    if (exportable(best.strategy))
        return;
    std::vector<Plan> sayable = plans;
    sayable.erase(
        std::remove_if(sayable.begin(), sayable.end(), [&](const Plan& plan) { return !exportable(plan.strategy); }),
        sayable.end());
    const auto instead = recommend(sayable);
    best.reason += " No config file that `export` writes can say it";
    best.reason +=
        instead ? fmt::format("; of those that one can, take {}.", sayable[*instead].strategy) : std::string(".");
}

/// Leaves the plan that needs the fewest changes to fit, and of these the least memory then; none where none would.
void keepNearest(std::vector<Plan>& plans)
{
    const auto rank = [](const Plan& plan) {
        const auto& change = plan.smallestChange;
        return std::pair(change ? change->steps.size() : std::numeric_limits<std::size_t>::max(),
                         change ? change->peakUsed : Bytes(0));
    };
    const auto nearest =
        std::min_element(plans.begin(), plans.end(), [&](const Plan& a, const Plan& b) { return rank(a) < rank(b); });
    if (nearest == plans.end() || !nearest->smallestChange)
        plans.clear();
    else
        plans = {Plan(*nearest)};
}

ExitCode compare(Options& options)
{
    if (options.published)
        return comparePublishedFigures(options.files, options.question.given(), options.output);
    if (options.files.size() > 1)
        throw InputError("command line", options.files[1], "is a second scenario",
                         "one scenario; `shardplan batch` takes many");
    if (!options.files.empty())
        options.question.setFile(options.files.front());
    if (!options.emitPlan.empty())
        return emitPlan(options);
    const Scenario scenario = options.question.read();
    PlanDetail detail;
    detail.curve = false;
    detail.suggest = !options.onlyFitting && !options.recommend;
    std::vector<Plan> plans = plansOf(scenario, detail);
    auto best = recommendation(scenario, plans);
    if (options.recommend && best)
        argue(scenario, plans, *best);
    if (options.recommend && !best) {
        detail.suggest = true;
        plans = plansOf(scenario, detail);
        keepNearest(plans);
    } else if (options.onlyFitting || options.recommend)
        plans.erase(std::remove_if(plans.begin(), plans.end(),
                                   [&](const Plan& plan) {
                                       return !plan.fits() || (options.recommend && plan.strategy != best->strategy);
                                   }),
                    plans.end());
    switch (options.output.format()) {
    case Format::Text: options.output.write(compareText(scenario, plans, best, options.output.style())); break;
    case Format::Json: options.output.write(jsonText(resultToJson(scenario, plans, best)) + '\n'); break;
    case Format::Csv: options.output.write(plansToCsv(plans)); break;
    }
    return best ? ExitCode::Done : ExitCode::No;
}

} // namespace

Command addCompare(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app =
        root.add_subcommand("compare", "Every option side by side: does it fit, what it holds, what it sends");
    app->footer(kHelp);
    app->add_option("scenario", options->files, "scenario file; flags replace single values of it")
        ->type_name("SCENARIO");
    app->add_flag("--recommend", options->recommend,
                  "only the strategy to take, and what would change it; where nothing fits, the nearest")
        ->group("Answer");
    app->add_flag("--only-fitting", options->onlyFitting, "leave out what does not fit")->group("Answer");
    app->add_option("--emit-plan", options->emitPlan, "plan.json of this strategy, for shardrun to carry out")
        ->type_name("NAME")
        ->group("Answer");
    app->add_flag("--published", options->published,
                  "predictions beside published figures: of these scenarios, or of all that ship")
        ->group("Answer");
    options->question.add(*app, ScenarioOptions::Strategies::Many, ScenarioOptions::Source::Elsewhere);
    options->output.add(*app, findings, Formats::TextJsonCsv);
    return {app, [options] { return compare(*options); }};
}

} // namespace shardwright::cli
