#include "tests/executor/hostile_plans.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "core/json_cursor.hpp"
#include "core/plan_file.hpp"
#include "core/units.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/run_plan.hpp"

namespace shardwright {

namespace {

using Random = std::mt19937_64;

std::size_t below(std::size_t size, Random& random)
{
    return static_cast<std::size_t>(random() % size);
}

/// Another number of a kind that breaks things: near it, at the ends of types, of another row.
std::int64_t otherNumber(std::int64_t value, Random& random)
{
    constexpr std::int64_t kEnds[] = {-1,    0,     1,          2,          3,          64,
                                      65535, 65536, 2147483647, 2147483648, 4294967296, 9223372036854775807};
    const auto wrapping = static_cast<std::uint64_t>(value); // beside one end of the type is the other
    switch (random() % 4) {
    case 0: return static_cast<std::int64_t>(wrapping + 1);
    case 1: return static_cast<std::int64_t>(wrapping - 1);
    case 2: return static_cast<std::int64_t>(random() % 200);
    default: return kEnds[below(std::size(kEnds), random)];
    }
}

/// All texts of a table's column, so that a word becomes another one that is known there.
std::string otherWord(const Json& table, std::size_t column, Random& random)
{
    const Json& row = table[below(table.size(), random)];
    return row.is_array() && column < row.size() && row[column].is_string() ? row[column].get<std::string>() : "none";
}

void changeCell(Json& table, Json& row, std::size_t column, Random& random)
{
    Json& cell = row[column];
    if (cell.is_number_integer())
        cell = otherNumber(cell.get<std::int64_t>(), random);
    else if (cell.is_string())
        cell = otherWord(table, column, random);
    else if (cell.is_boolean())
        cell = !cell.get<bool>();
    else if (cell.is_array() && !cell.empty())
        cell[below(cell.size(), random)] = otherNumber(0, random);
    else if (cell.is_array())
        cell.push_back(0);
}

void changeTable(Json& table, Random& random)
{
    if (!table.is_array() || table.empty())
        return;
    const std::size_t at = below(table.size(), random);
    switch (random() % 12) {
    case 0: table.erase(at); return;
    case 1: table.push_back(table[at]); return;
    case 2: std::swap(table[at], table[below(table.size(), random)]); return;
    case 3: table[at] = table[below(table.size(), random)]; return;
    default: break;
    }
    if (table[at].is_array() && !table[at].empty())
        changeCell(table, table[at], below(table[at].size(), random), random);
    else if (table[at].is_number_integer())
        table[at] = otherNumber(table[at].get<std::int64_t>(), random);
}

/// A number of the model, the training or the plan itself.
void changeSetting(Json& object, Random& random)
{
    std::vector<std::string> numbers;
    for (const auto& [key, value] : object.items())
        if (value.is_number_integer())
            numbers.push_back(key);
    if (numbers.empty())
        return;
    Json& value = object[numbers[below(numbers.size(), random)]];
    value = otherNumber(value.get<std::int64_t>(), random);
}

/// What a test has the time and memory for.
bool isSmall(const ExecutablePlan& plan)
{
    constexpr std::int64_t kElements = 1 << 20;
    constexpr std::int64_t kRanks = 4096;
    constexpr std::size_t kLength = 20000;
    const Architecture& a = plan.model.architecture;
    const std::vector<NamedParameter> parameters = listParameters(plan.model);
    const auto most = std::max({a.hidden, a.ffn, a.vocab, a.headDim, plan.training.sequenceLength});
    if (plan.ranks > kRanks || plan.schedule.ops.size() > kLength || parameters.size() > 100 ||
        checkedMultiply(most, plan.training.tokensPerMicroBatch()) > kElements ||
        checkedMultiply(a.heads, a.headDim) > kElements || plan.model.parameters() > kElements)
        return false;
    for (const Content& content : plan.schedule.contents) {
        const std::int64_t parts =
            checkedMultiply(content.layout.parts, std::max<std::int64_t>(1, std::ssize(content.layout.tensors)));
        if (content.layout.parts > plan.ranks) // refused; and slow to list
            continue;
        if (parts > kElements || elementsOf(content.layout, parameters) > kElements)
            return false;
    }
    std::int64_t turns = 0;
    for (const Segment& segment : plan.schedule.segments)
        turns = checkedAdd(turns, segment.repeat);
    return turns <= 16;
}

} // namespace

Json mutatedPlan(Json body, Random& random)
{
    for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
        Json& schedule = body["schedule"];
        switch (random() % 16) {
        case 0: changeSetting(body, random); break;
        case 1: changeSetting(body["training"], random); break;
        case 2: changeSetting(body["model"], random); break;
        default: {
            auto table = schedule.begin();
            std::advance(table, static_cast<std::ptrdiff_t>(below(schedule.size(), random)));
            changeTable(table.value(), random);
        }
        }
    }
    return body;
}

Tried tryPlan(const std::string& text)
{
    Tried tried;
    try {
        const ExecutablePlan plan = planFromText(text, "hostile.json");
        tried.fate = Fate::TooLarge;
        if (!isSmall(plan))
            return tried;
        tried.fate = Fate::Refused;
        if (const std::vector<std::string> refusals = executorRefusals(plan); !refusals.empty())
            return {Fate::Refused, refusals.front()};
        tried.fate = Fate::Failed;
        RunSettings settings;
        settings.steps = 2;
        settings.executor.memoryLimit = Bytes(256 << 20);
        std::vector<std::unique_ptr<Transport>> end;
        end.push_back(makeSoloTransport(static_cast<int>(plan.ranks) - 1, static_cast<int>(plan.ranks)));
        runPlan(plan, settings, end);
        tried.fate = Fate::CarriedOut;
    } catch (const std::exception& error) {
        tried.cause = error.what();
    }
    return tried;
}

} // namespace shardwright
