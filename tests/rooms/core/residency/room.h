// As room.cc.
