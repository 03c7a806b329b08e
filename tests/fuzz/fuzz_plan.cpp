// The reader of plan.json behind its checksum: any body gives a plan or an InputError that says where, nothing else;
// and what was accepted is written and read again as the same.

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/plan_file.hpp"
#include "core/units.hpp"

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
    } catch (const InputError& error) {
        if (error.findings().empty() || error.findings().front().what.empty())
            std::abort();
    } catch (const NumberTooLarge&) {  // layouts and models beyond 64 bits
    } catch (const Json::exception&) { // a text that is no UTF-8 cannot be sealed
    }
    return 0;
}
