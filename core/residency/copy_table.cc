#include "core/residency/copy_table.h"

#include <algorithm>
#include <utility>

namespace ditserve {

Copy* CopyTable::Find(ModuleIndex module, Tier tier, FormId form) const {
  for (const std::unique_ptr<Copy>& copy : modules_[module]) {
    if (copy->tier == tier && copy->form == form) return copy.get();
  }
  return nullptr;
}

Copy* CopyTable::Add(ModuleIndex module, Tier tier, FormId form, Room room) {
  modules_[module].push_back(std::make_unique<Copy>(Copy{module, tier, form, std::move(room)}));
  return modules_[module].back().get();
}

Room CopyTable::Remove(Copy& copy) {
  Room room = std::move(copy.room);
  auto& copies = modules_[copy.module];
  copies.erase(std::find_if(copies.begin(), copies.end(), [&](const auto& each) { return each.get() == &copy; }));
  return room;
}

std::vector<Copy*> CopyTable::All() const {
  std::vector<Copy*> all;
  for (const auto& copies : modules_) {
    for (const std::unique_ptr<Copy>& copy : copies) all.push_back(copy.get());
  }
  return all;
}

}  // namespace ditserve
