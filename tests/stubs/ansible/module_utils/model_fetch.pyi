from model_fetch import *
