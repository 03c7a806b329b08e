// The reader of plan.json behind its checksum: any body gives a plan or an InputError that says where, nothing else;
// what was accepted is written and read again as the same; and what is small enough is carried out by one rank alone,
// or refused, or ends with a cause.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "core/json_cursor.hpp"
#include "core/plan_file.hpp"
#include "core/units.hpp"
#ifdef SHARDWRIGHT_HOSTILE_PLANS
#include "tests/executor/hostile_plans.hpp"
#endif

#ifdef SHARDWRIGHT_HOSTILE_PLANS
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

/// Bytes changed at random are no JSON; rows of a schedule are changed as such most of the time.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned int seed)
{
    using namespace shardwright;
    std::mt19937_64 random(seed);
    if (random() % 16 != 0)
        try {
            const Json body = Json::parse(data, data + size);
            if (body.is_object() && body.contains("schedule") && body["schedule"].is_object() &&
                !body["schedule"].empty() && body.contains("training") && body.contains("model")) {
                const std::string text = mutatedPlan(body, random).dump();
                if (text.size() <= most) {
                    std::memcpy(data, text.data(), text.size());
                    return text.size();
                }
            }
        } catch (const Json::exception&) { // no JSON: bytes then
        }
    return LLVMFuzzerMutate(data, size, most);
}
#endif

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    using namespace shardwright;
    try {
        const std::string sealed = sealedPlan(parseJson(std::string(data, data + size), "fuzz.json"));
        const ExecutablePlan plan = planFromText(sealed, "fuzz.json");
        const std::string written = planFileText(plan);
        if (planFileText(planFromText(written, "written.json")) != written)
            std::abort();
        for (const Content& content : plan.schedule.contents)
            if (content.layout.parts <= 64) // more are possible, and slow to list
                extentsOf(content.layout, listParameters(plan.model), 0);
#ifdef SHARDWRIGHT_HOSTILE_PLANS
        if (const Tried tried = tryPlan(sealed);
            tried.cause.empty() && (tried.fate == Fate::Refused || tried.fate == Fate::Failed))
            std::abort();
#endif
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    } catch (const NumberTooLarge&) {  // layouts and models beyond 64 bits
    } catch (const Json::exception&) { // a text that is no UTF-8 cannot be sealed
    }
    return 0;
}
