"""The network with a head per attribute, its loss and its moving average."""
